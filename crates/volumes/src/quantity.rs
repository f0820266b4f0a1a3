//! Reading quantities (`150m`, `40Mi`, `1e3`) as exact multiples of one billionth.
//!
//! The API server has validated the text; here only its value is needed.

/// A quantity in billionths. Values beyond the range of `i128` do not occur in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Amount(i128);

const NANO: i128 = 1_000_000_000;

impl Amount {
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) fn whole(units: i64) -> Self {
        Self(i128::from(units) * NANO)
    }

    pub(crate) fn milli(units: i64) -> Self {
        Self(i128::from(units) * (NANO / 1000))
    }

    /// Reads a quantity; `None` if the text is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let split = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let (scale, power): (i128, i32) = match suffix {
            "n" => (1, -9),
            "u" => (1, -6),
            "m" => (1, -3),
            "" => (1, 0),
            "k" => (1, 3),
            "M" => (1, 6),
            "G" => (1, 9),
            "T" => (1, 12),
            "P" => (1, 15),
            "E" => (1, 18),
            "Ki" => (1 << 10, 0),
            "Mi" => (1 << 20, 0),
            "Gi" => (1 << 30, 0),
            "Ti" => (1 << 40, 0),
            "Pi" => (1 << 50, 0),
            "Ei" => (1 << 60, 0),
            other => (1, other.strip_prefix(['e', 'E'])?.parse().ok()?),
        };
        let (negative, digits) = match number.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
        let power = power + 9 - i32::try_from(fraction.len()).ok()?;
        let scaled = mantissa.checked_mul(scale)?;
        let nanos = if power >= 0 {
            scaled.checked_mul(10i128.checked_pow(power.unsigned_abs())?)?
        } else {
            // Finer than a billionth is rounded up, as everywhere in the API.
            div_ceil(scaled, 10i128.checked_pow(power.unsigned_abs())?)
        };
        Some(Self(if negative { -nanos } else { nanos }))
    }

    /// Whole units, rounded up.
    pub(crate) fn value(self) -> i128 {
        div_ceil(self.0, NANO)
    }

    /// Thousandths, rounded up.
    pub(crate) fn milli_value(self) -> i128 {
        div_ceil(self.0, NANO / 1000)
    }

    /// Whole units as a size in bytes; negative sizes are none.
    pub(crate) fn bytes(self) -> u64 {
        u64::try_from(self.value().max(0)).unwrap_or(u64::MAX)
    }
}

/// `a / b`, rounded up, for positive `b`.
pub(crate) fn div_ceil(a: i128, b: i128) -> i128 {
    a.div_euclid(b) + i128::from(a.rem_euclid(b) != 0)
}

#[test]
fn reads_all_forms() {
    let milli = |text| Amount::parse(text).map(Amount::milli_value);
    for (text, want) in [
        ("150m", Some(150)),
        ("1", Some(1000)),
        ("0.5", Some(500)),
        (".5", Some(500)),
        ("1.", Some(1000)),
        ("2k", Some(2_000_000)),
        ("1Ki", Some(1_024_000)),
        ("1.5Gi", Some(1_610_612_736_000)),
        ("1e3", Some(1_000_000)),
        ("1E3", Some(1_000_000)),
        ("1E", Some(1_000_000_000_000_000_000_000)),
        ("12e-1", Some(1200)),
        ("1n", Some(1)),
        ("-1", Some(-1000)),
        ("", None),
        ("m", None),
        ("1x", None),
    ] {
        assert_eq!(milli(text), want, "{text}");
    }
    assert_eq!(Amount::parse("1500m").map(Amount::value), Some(2));
    assert_eq!(Amount::parse("40Mi").map(Amount::bytes), Some(40 << 20));
}
