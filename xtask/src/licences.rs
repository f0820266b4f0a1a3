//! Every crate that is linked in has a licence that we may ship: decided from `cargo metadata`, offline.
use std::{path::Path, process::Command};

/// SPDX names that are fine to link. Copyleft beyond single files is not.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
];

/// One line per crate with another licence, or none.
pub fn check(root: &Path) -> Vec<String> {
    let output =
        Command::new("cargo").args(["metadata", "--format-version", "1", "--locked"]).current_dir(root).output();
    let metadata: serde_json::Value = match output.map(|o| serde_json::from_slice(&o.stdout)) {
        Ok(Ok(value)) => value,
        _ => return vec!["cargo metadata --locked failed; is Cargo.lock up to date?".into()],
    };
    let packages = metadata["packages"].as_array().into_iter().flatten();
    packages
        .filter(|p| !p["license"].as_str().is_some_and(permits))
        .map(|p| {
            format!("{} {}: licence {} is not allowed; choose another crate", p["name"], p["version"], p["license"])
        })
        .collect()
}

/// Whether an SPDX expression offers an allowed choice: every part of an AND, one part of an OR.
fn permits(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], " ").replace('/', " OR ");
    // Expressions in use nest at most as `A AND (B OR C)`; without brackets AND of ORs is the stricter reading.
    flat.split(" AND ").all(|part| part.split(" OR ").any(|name| ALLOWED.contains(&name.trim())))
}

#[test]
fn expressions() {
    for (expression, fine) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0", false),
        ("GPL-2.0 OR MIT", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
    ] {
        assert_eq!(permits(expression), fine, "{expression}");
    }
}
