//! QEMU's protocol: one JSON object per line, a greeting first, an answer to each command, and events in between.
use std::{
    io::{self, BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::{Value, json};

/// An answer is short; what is longer is none.
const LINE_BYTES: u64 = 1 << 20;

/// The keeper's end of the line.
pub(crate) struct Monitor {
    from: BufReader<UnixStream>,
}

/// What a command came to.
pub(crate) enum Answer {
    Done(Value),
    /// In the daemon's words.
    Refused(String),
}

impl Monitor {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { from: BufReader::new(stream) }
    }

    /// What becomes readable when there is a line, or the end.
    pub(crate) fn descriptor(&self) -> io::Result<UnixStream> {
        self.from.get_ref().try_clone()
    }

    /// The next line; an error at the end.
    pub(crate) fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        io::Read::take(&mut self.from, LINE_BYTES).read_line(&mut line)?;
        if line.ends_with('\n') { Ok(line) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    /// Waits for the greeting and begins.
    pub(crate) fn begin(&mut self, limit: Duration) -> io::Result<()> {
        self.from.get_ref().set_read_timeout(Some(limit))?;
        loop {
            let said: Value = serde_json::from_str(&self.line()?)?;
            if said.get("QMP").is_some() {
                break;
            }
        }
        match self.ask("qmp_capabilities", json!({}), limit)? {
            Answer::Done(_) => Ok(()),
            Answer::Refused(why) => Err(io::Error::other(why)),
        }
    }

    /// Sends a command and waits for its answer. `TimedOut`: the daemon waits for somebody else; it is of no use any more.
    pub(crate) fn ask(&mut self, command: &str, arguments: Value, limit: Duration) -> io::Result<Answer> {
        self.from.get_ref().set_read_timeout(Some(limit))?;
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.from.get_mut().write_all(line.as_bytes())?;
        loop {
            let line = self.line().map_err(|e| match e.kind() {
                ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
                _ => e,
            })?;
            let mut said: Value = serde_json::from_str(&line)?;
            if let Some(result) = said.get_mut("return") {
                return Ok(Answer::Done(result.take()));
            }
            if let Some(error) = said.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("it refused");
                return Ok(Answer::Refused(why.trim().to_owned()));
            }
        }
    }
}
