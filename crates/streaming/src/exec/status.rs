//! The outcome of a command as clients read it.
use serde_json::json;

use crate::contract::Outcome;

/// The payload of the error stream. Empty if there is nothing to say, as before protocol version 4.
pub(super) fn payload(protocol: &str, outcome: &Outcome) -> Vec<u8> {
    let as_json = protocol.starts_with("v4") || protocol.starts_with("v5");
    let message = match outcome {
        Outcome::Exited(0) => {
            return if as_json { br#"{"metadata":{},"status":"Success"}"#.to_vec() } else { Vec::new() };
        }
        Outcome::Exited(code) => format!("command terminated with non-zero exit code: exit status {code}"),
        Outcome::Failed(text) => format!("Internal error occurred: {text}"),
    };
    if !as_json {
        return message.into_bytes();
    }
    let status = match outcome {
        Outcome::Exited(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Outcome::Failed(text) => json!({
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "InternalError",
            "details": { "causes": [{ "message": text }] },
            "code": 500,
        }),
    };
    status.to_string().into_bytes()
}

/// What is reported when the side that runs the command gave up without a word.
pub(super) fn silence() -> Outcome {
    Outcome::Failed("the session ended before the command's outcome was known".to_owned())
}
