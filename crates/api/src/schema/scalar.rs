//! Checks and canonical forms of scalar values, with the messages that Go's decoders give.
use std::fmt::Write as _;

use base64::{
    DecodeError, Engine, alphabet,
    engine::{GeneralPurpose, GeneralPurposeConfig},
};
use jiff::{Timestamp, civil::Date, tz::Offset};

/// Go's standard decoder also takes a last symbol with surplus bits.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Checks a quantity's syntax. Returns the text without surrounding blanks.
pub(super) fn quantity(text: &str) -> Result<&str, &'static str> {
    const FORMAT: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    const SUFFIX: &str = "unable to parse quantity's suffix";
    let text = text.trim();
    if text.is_empty() {
        return Err(FORMAT);
    }
    let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let mut rest = &unsigned[digits(unsigned)..];
    if let Some(fraction) = rest.strip_prefix('.') {
        rest = &fraction[digits(fraction)..];
    }
    let letters = rest.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let exponent = letters.strip_prefix(['-', '+']).unwrap_or(letters);
    if !exponent.bytes().all(|b| b.is_ascii_digit()) {
        return Err(FORMAT);
    }
    let known = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].contains(&rest)
        || rest.strip_prefix(['e', 'E']).is_some_and(|power| power.parse::<i64>().is_ok());
    if known { Ok(text) } else { Err(SUFFIX) }
}

/// Checks base64 and returns its canonical form.
pub(super) fn bytes(text: &str, scratch: &mut Vec<u8>) -> Result<String, String> {
    let stripped;
    let mut plain = text;
    if text.contains(['\r', '\n']) {
        stripped = text.replace(['\r', '\n'], "");
        plain = &stripped;
    }
    scratch.clear();
    match BASE64.decode_vec(plain, scratch) {
        Ok(()) => Ok(BASE64.encode(&scratch)),
        Err(error) => {
            let at = match error {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
                DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => plain.len(),
            };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}

/// Reads a time and returns its canonical form: UTC, to the second or (with `micro`) to the microsecond.
pub(super) fn time(text: &str, micro: bool) -> Result<String, String> {
    let mut scan = Scan { text, rest: text, micro };
    let year = scan.number(4, "2006", i16::MAX)?;
    scan.literal('-', "-")?;
    let month = scan.number(2, "01", 12).and_then(|month| if month == 0 { scan.range("month") } else { Ok(month) })?;
    scan.literal('-', "-")?;
    let day = scan.number(2, "02", 99)?;
    scan.literal('T', "T")?;
    let hour = scan.number(2, "15", 23)?;
    scan.literal(':', ":")?;
    let minute = scan.number(2, "04", 59)?;
    scan.literal(':', ":")?;
    let second = scan.number(2, "05", 59)?;
    let nanos = scan.fraction()?;
    let offset = scan.offset()?;
    if !scan.rest.is_empty() {
        return Err(format!("parsing time {text:?}: extra text: {:?}", scan.rest));
    }
    let (Ok(month), Ok(day), Ok(hour), Ok(minute), Ok(second)) =
        (i8::try_from(month), i8::try_from(day), i8::try_from(hour), i8::try_from(minute), i8::try_from(second))
    else {
        return scan.range("time");
    };
    let Ok(date) = Date::new(year, month, day) else { return scan.range("day") };
    let Ok(instant) = Offset::from_seconds(offset).and_then(|o| o.to_timestamp(date.at(hour, minute, second, nanos)))
    else {
        return scan.range("time");
    };
    Ok(format_time(instant, micro))
}

fn format_time(instant: Timestamp, micro: bool) -> String {
    let utc = Offset::UTC.to_datetime(instant);
    let mut out = String::with_capacity(27);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        utc.year(),
        utc.month(),
        utc.day(),
        utc.hour(),
        utc.minute(),
        utc.second()
    );
    if micro {
        let _ = write!(out, ".{:06}", utc.subsec_nanosecond() / 1000);
    }
    out.push('Z');
    out
}

/// Reads a time from left to right, as Go does, so that mistakes are named alike.
struct Scan<'a> {
    text: &'a str,
    rest: &'a str,
    micro: bool,
}

impl Scan<'_> {
    fn fail<T>(&self, wanted: &str) -> Result<T, String> {
        let layout = if self.micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
        Err(format!("parsing time {:?} as {layout:?}: cannot parse {:?} as {wanted:?}", self.text, self.rest))
    }

    fn range<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("parsing time {:?}: {what} out of range", self.text))
    }

    fn number(&mut self, width: usize, wanted: &'static str, max: i16) -> Result<i16, String> {
        let part = self.rest.get(..width).filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
        let Some(value) = part.and_then(|part| part.parse().ok()) else { return self.fail(wanted) };
        if value > max {
            let what = match wanted {
                "01" => "month",
                "15" => "hour",
                "04" => "minute",
                _ => "second",
            };
            return self.range(what);
        }
        self.rest = &self.rest[width..];
        Ok(value)
    }

    fn literal(&mut self, sign: char, wanted: &str) -> Result<(), String> {
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => self.fail(wanted),
        }
    }

    /// Nanoseconds after the second: any digits, or exactly six where microseconds are written.
    fn fraction(&mut self) -> Result<i32, String> {
        let digits = self
            .rest
            .strip_prefix('.')
            .map_or(0, |rest| rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len()));
        if digits == 0 || (self.micro && digits != 6) {
            return if self.micro { self.fail(".000000") } else { Ok(0) };
        }
        let mut nanos = 0;
        for place in 0..9 {
            let digit = self.rest.as_bytes()[1..=digits].get(place).map_or(0, |b| i32::from(b - b'0'));
            nanos = nanos * 10 + digit;
        }
        self.rest = &self.rest[1 + digits..];
        Ok(nanos)
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Result<i32, String> {
        const WANTED: &str = "Z07:00";
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let sign = match self.rest.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return self.fail(WANTED),
        };
        let well_formed = self.rest.get(1..6).filter(|part| {
            part.bytes().enumerate().all(|(at, b)| if at == 2 { b == b':' } else { b.is_ascii_digit() })
        });
        let Some(part) = well_formed else { return self.fail(WANTED) };
        let (hours, minutes): (i32, i32) = (part[..2].parse().unwrap_or(99), part[3..].parse().unwrap_or(99));
        if hours > 24 {
            return self.range("time zone offset hour");
        }
        if minutes > 60 {
            return self.range("time zone offset minute");
        }
        self.rest = &self.rest[6..];
        Ok(sign * (hours * 3600 + minutes * 60))
    }
}
