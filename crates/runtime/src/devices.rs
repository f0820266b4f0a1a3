//! Which device nodes a container may use, and the version 2 filter program that enforces it.
use std::fmt;

use rustix::fs::{FileType, major, minor};

/// One allowed device or class of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// `b`, `c`, or `a` for both.
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Subset of `rwm`.
    pub access: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(f, "{} {}:{} {}", self.kind, star(self.major), star(self.minor), self.access)
    }
}

/// A character device every container has: name, major, minor.
pub(crate) const DEFAULT_NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// What every container may use: making nodes (using them is another matter), the usual harmless ones, its terminals.
pub(crate) fn defaults() -> Vec<Rule> {
    let rule = |kind, major, minor, access: &str| Rule { kind, major, minor, access: access.to_owned() };
    let mut rules = vec![rule('c', None, None, "m"), rule('b', None, None, "m")];
    rules.extend(DEFAULT_NODES.iter().map(|(_, a, i)| rule('c', Some(*a), Some(*i), "rwm")));
    rules.push(rule('c', Some(5), Some(2), "rwm"));
    rules.push(rule('c', Some(136), None, "rwm"));
    rules
}

/// The rule for a host node; `None` if it is not a device.
pub(crate) fn rule_for(stat: &rustix::fs::Stat, access: &str) -> Option<Rule> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        _ => return None,
    };
    let (major, minor) = (Some(major(stat.st_rdev)), Some(minor(stat.st_rdev)));
    Some(Rule { kind, major, minor, access: access.to_owned() })
}

/// eBPF for `BPF_PROG_TYPE_CGROUP_DEVICE`: returns 1 if one rule allows the access, else 0.
///
/// The context is `{ u32 access_type; u32 major; u32 minor }`, the type in the low half of `access_type`, the access
/// (1 make, 2 read, 4 write) in its upper half.
pub(crate) fn program(rules: &[Rule]) -> Vec<u64> {
    const LOAD_WORD: u8 = 0x61;
    const MOV_REG: u8 = 0xbf;
    const MOV_IMM: u8 = 0xb7;
    const AND_IMM: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const JUMP_NOT_EQUAL: u8 = 0x55;
    const EXIT: u8 = 0x95;
    let op = |code: u8, dst: u8, src: u8, offset: i16, imm: u32| -> u64 {
        u64::from(code) | u64::from(dst | (src << 4)) << 8 | u64::from(offset as u16) << 16 | u64::from(imm) << 32
    };
    // r2 type, r3 access, r4 major, r5 minor
    let mut code = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOV_REG, 3, 2, 0, 0),
        op(AND_IMM, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let mut tests = Vec::new();
        match rule.kind {
            'b' => tests.push((2, 1)),
            'c' => tests.push((2, 2)),
            _ => {}
        }
        tests.extend(rule.major.map(|n| (4, n)));
        tests.extend(rule.minor.map(|n| (5, n)));
        let bits = rule.access.chars().fold(0, |bits, c| {
            bits | match c {
                'm' => 1,
                'r' => 2,
                'w' => 4,
                _ => 0,
            }
        });
        // After the tests: two words mask the access, one tests it, two return 1.
        let body = tests.len() + 5;
        for (i, (register, value)) in tests.iter().enumerate() {
            code.push(op(JUMP_NOT_EQUAL, *register, 0, (body - i - 1) as i16, *value));
        }
        code.push(op(MOV_REG, 1, 3, 0, 0));
        code.push(op(AND_IMM, 1, 0, 0, !bits & 7));
        code.push(op(JUMP_NOT_EQUAL, 1, 0, 2, 0));
        code.push(op(MOV_IMM, 0, 0, 0, 1));
        code.push(op(EXIT, 0, 0, 0, 0));
    }
    code.push(op(MOV_IMM, 0, 0, 0, 0));
    code.push(op(EXIT, 0, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a device program on one access, as the kernel would.
    fn allowed(code: &[u64], kind: u64, access: u64, major: u64, minor: u64) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        for _ in 0..1000 {
            let word = code[at];
            let (dst, src) = ((word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (offset, imm) = ((word >> 16) as u16 as i16, word >> 32);
            at += 1;
            match word as u8 {
                0x61 => registers[dst] = context[offset as usize / 4],
                0xbf => registers[dst] = registers[src],
                0xb7 => registers[dst] = imm,
                0x57 => registers[dst] &= imm,
                0x77 => registers[dst] >>= imm,
                0x55 if registers[dst] != imm => at = (at as i64 + i64::from(offset)) as usize,
                0x55 => {}
                0x95 => return registers[0] == 1,
                other => panic!("unexpected instruction {other:#x}"),
            }
        }
        panic!("the program does not end")
    }

    #[test]
    fn the_program_allows_exactly_the_rules() {
        let code = program(&defaults());
        const BLOCK: u64 = 1;
        const CHAR: u64 = 2;
        let cases = [
            ("read null", CHAR, 2, 1, 3, true),
            ("read and write null", CHAR, 6, 1, 3, true),
            ("make any block node", BLOCK, 1, 259, 0, true),
            ("read a disk", BLOCK, 2, 259, 0, false),
            ("write a disk", BLOCK, 4, 8, 0, false),
            ("make and read a disk", BLOCK, 3, 8, 0, false),
            ("kernel memory", CHAR, 2, 1, 1, false),
            ("a terminal", CHAR, 6, 136, 7, true),
            ("block device with null's numbers", BLOCK, 2, 1, 3, false),
        ];
        for (what, kind, access, major, minor, expected) in cases {
            assert_eq!(allowed(&code, kind, access, major, minor), expected, "{what}");
        }
        let all = Rule { kind: 'a', major: None, minor: None, access: "rwm".to_owned() };
        assert!(allowed(&program(&[all]), BLOCK, 7, 8, 0));
        assert!(!allowed(&program(&[]), CHAR, 2, 1, 3));
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        match crate::kernel::load_device_program(&program(&defaults())) {
            Ok(_) => {}
            // A user that may not load them.
            Err(e) => assert_eq!(e.raw_os_error(), Some(nix::libc::EPERM), "{e}"),
        }
    }

    #[test]
    fn rules_print_as_the_kernel_reads_them() {
        let texts: Vec<_> = defaults().iter().map(ToString::to_string).collect();
        assert_eq!(texts[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(texts.last().unwrap(), "c 136:* rwm");
    }
}
