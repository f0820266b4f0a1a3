//! Kubernetes quantities: `1Gi`, `500m`, `1e3`; exact to one billionth.
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// Largest value of a binary quantity; larger ones are capped, as upstream does.
const BINARY_MAX: i128 = i64::MAX as i128 * NANO;
/// Power of 1000 above which the canonical form of a decimal quantity has no suffix left.
const EXA: i32 = 18;

/// Which suffixes a quantity was written with, and is written with again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `Ki`, `Mi`, ...
    Binary,
    /// `n`, `u`, `m`, none, `k`, `M`, ...
    Decimal,
    /// `e3`
    Exponent,
}

/// A number with the format it was written in. Equality and order are by value alone.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// Why a text is no quantity. The sentences are those that clients see from upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nano: 0, format: Format::Decimal };

    /// A whole number, written with decimal suffixes.
    pub const fn whole(value: i64) -> Self {
        Quantity { nano: value as i128 * NANO, format: Format::Decimal }
    }

    /// A number of bytes, written with binary suffixes.
    pub const fn bytes(value: i64) -> Self {
        Quantity { nano: value as i128 * NANO, format: Format::Binary }
    }

    /// A number of thousandths, written with decimal suffixes.
    pub const fn milli(value: i64) -> Self {
        Quantity { nano: value as i128 * (NANO / 1000), format: Format::Decimal }
    }

    /// Reads a quantity.
    ///
    /// # Errors
    /// `QuantityError` where the text does not have the form of a number and a known suffix.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let Parts { negative, whole, fraction, base, exponent, format } = Parts::of(text)?;
        let digits = format!("{whole}{fraction}");
        let magnitude = scaled(&digits, fraction.len(), base, exponent);
        let magnitude = if format == Format::Binary { magnitude.min(BINARY_MAX) } else { magnitude };
        // A fraction of one has no binary form.
        let format =
            if format == Format::Binary && magnitude > 0 && magnitude < NANO { Format::Decimal } else { format };
        Ok(Quantity { nano: if negative { -magnitude } else { magnitude }, format })
    }

    pub const fn format(self) -> Format {
        self.format
    }

    /// -1, 0 or 1.
    pub const fn sign(self) -> i32 {
        self.nano.signum() as i32
    }

    pub const fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// The value in whole units, rounded away from zero, capped to the range.
    pub fn value(self) -> i64 {
        clamp(div_away(self.nano, NANO))
    }

    /// The value in thousandths, rounded away from zero, capped to the range.
    pub fn milli_value(self) -> i64 {
        clamp(div_away(self.nano, NANO / 1000))
    }

    /// The value as far as a float can hold it; for ratios.
    #[expect(clippy::cast_precision_loss, reason = "a ratio is shown and compared as upstream does, in floats")]
    pub fn as_f64(self) -> f64 {
        self.nano as f64 / NANO as f64
    }

    /// Whether the value is a whole number.
    pub const fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    /// Rounds away from zero to thousandths, as upstream does with the resources of objects.
    #[must_use]
    pub fn rounded_to_milli(self) -> Self {
        let unit = NANO / 1000;
        Quantity { nano: div_away(self.nano, unit) * unit, ..self }
    }

    /// Rounds away from zero to whole units.
    #[must_use]
    pub fn rounded_to_whole(self) -> Self {
        Quantity { nano: div_away(self.nano, NANO).saturating_mul(NANO), ..self }
    }

    fn write_decimal(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut mantissa, mut exponent) = (self.nano, -9);
        let limit = if self.format == Format::Exponent { i32::MAX } else { EXA };
        while mantissa != 0 && mantissa % 1000 == 0 && exponent < limit {
            mantissa /= 1000;
            exponent += 3;
        }
        if mantissa == 0 {
            return f.write_str("0");
        }
        write!(f, "{mantissa}")?;
        match (self.format, exponent) {
            (_, 0) => Ok(()),
            (Format::Exponent, _) => write!(f, "e{exponent}"),
            (_, -9) => f.write_str("n"),
            (_, -6) => f.write_str("u"),
            (_, -3) => f.write_str("m"),
            (_, 3) => f.write_str("k"),
            (_, 6) => f.write_str("M"),
            (_, 9) => f.write_str("G"),
            (_, 12) => f.write_str("T"),
            (_, 15) => f.write_str("P"),
            _ => f.write_str("E"),
        }
    }

    fn write_binary(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let (mut mantissa, mut power) = (div_away(self.nano, NANO), 0);
        while mantissa % 1024 == 0 && power + 1 < SUFFIXES.len() {
            mantissa /= 1024;
            power += 1;
        }
        write!(f, "{mantissa}{}", SUFFIXES[power])
    }
}

/// A quantity's text, taken apart.
struct Parts<'t> {
    negative: bool,
    whole: &'t str,
    fraction: &'t str,
    base: i128,
    exponent: i32,
    format: Format,
}

impl<'t> Parts<'t> {
    fn of(text: &'t str) -> Result<Self, QuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) || !suffix_shaped(suffix) {
            return Err(QuantityError::Format);
        }
        let (base, exponent, format) = read_suffix(suffix).ok_or(QuantityError::Suffix)?;
        Ok(Self { negative, whole, fraction, base, exponent, format })
    }

    /// Whether upstream takes the text for canonical and keeps it. It looks at length and last digits only, so that
    /// a few texts pass that are not: `+1Gi`, `1E3`, `1.500`.
    fn kept(&self, finest: i32) -> bool {
        let whole = self.whole.trim_start_matches('0');
        let length = |text: &str| i32::try_from(text.len()).unwrap_or(i32::MAX);
        let size = length(whole).saturating_add(length(self.fraction));
        if whole.is_empty() {
            return false;
        }
        if self.format == Format::Binary {
            let odd = whole.parse::<u64>().is_ok_and(|value| value & 7 != 0);
            return odd && self.fraction.is_empty() && size + self.exponent * 3 / 10 < 15;
        }
        let scale = self.exponent.saturating_sub(length(self.fraction));
        let zeros = if self.fraction.is_empty() { whole } else { self.fraction };
        size <= 18 && scale >= finest && scale % 3 == 0 && !zeros.ends_with("000")
    }
}

/// Whether a suffix has the shape that upstream's scanner lets through: letters, a sign, digits.
fn suffix_shaped(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    rest.bytes().all(|b| b.is_ascii_digit())
}

/// Base, exponent and format of a suffix.
fn read_suffix(suffix: &str) -> Option<(i128, i32, Format)> {
    let decimal = |e| Some((10, e, Format::Decimal));
    let binary = |e| Some((2, e, Format::Binary));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(EXA),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E'])?;
            Some((10, digits.parse().ok()?, Format::Exponent))
        }
    }
}

/// `digits` with `decimals` of them behind the point, times `base^exponent`, in billionths; rounded up, capped.
fn scaled(digits: &str, decimals: usize, base: i128, exponent: i32) -> i128 {
    /// Beyond any magnitude that matters, and still safe to negate.
    const CAP: i128 = 10_i128.pow(37);
    let digits = digits.trim_start_matches('0');
    let mut mantissa: i128 = 0;
    for digit in digits.bytes() {
        mantissa = match mantissa.checked_mul(10).and_then(|m| m.checked_add(i128::from(digit - b'0'))) {
            Some(m) if m < CAP => m,
            // Longer than what fits: digits behind the point do not matter then, those before it mean the cap.
            _ => {
                return if decimals == 0 {
                    CAP
                } else {
                    scaled(&digits[..digits.len() - 1], decimals - 1, base, exponent)
                };
            }
        };
    }
    if mantissa == 0 {
        return 0;
    }
    let mut ten = 9 - i32::try_from(decimals).unwrap_or(i32::MAX);
    if base == 2 {
        mantissa = mantissa.saturating_mul(1_i128 << exponent);
    } else {
        ten = ten.saturating_add(exponent);
    }
    let power = 10_i128.checked_pow(ten.unsigned_abs());
    match (ten >= 0, power) {
        (true, Some(p)) => mantissa.saturating_mul(p).min(CAP),
        (true, None) => CAP,
        (false, Some(p)) => div_away(mantissa, p).min(CAP),
        (false, None) => 1,
    }
}

/// Division that rounds away from zero.
fn div_away(value: i128, by: i128) -> i128 {
    value / by + if value % by == 0 { 0 } else { value.signum() }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nano.abs() < 1024 * NANO;
        match self.format {
            // What binary suffixes can't express exactly has decimal ones.
            Format::Binary if !small && self.is_whole() => self.write_binary(f),
            _ => self.write_decimal(f),
        }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Quantity::parse(text)
    }
}

impl TryFrom<&Text> for Quantity {
    type Error = QuantityError;
    fn try_from(text: &Text) -> Result<Self, QuantityError> {
        Quantity::parse(&text.0)
    }
}

impl From<Quantity> for Text {
    fn from(quantity: Quantity) -> Text {
        Text(quantity.to_string())
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

/// The format is that of the left side, or of the right where the left is zero.
impl std::ops::Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nano: self.nano.saturating_add(other.nano), format }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nano: self.nano.saturating_sub(other.nano), format }
    }
}

/// Rewrites a quantity in canonical form; leaves what is none for validation to refuse.
pub(crate) fn canonical(text: &mut Text) {
    if let Ok(q) = Quantity::parse(&text.0)
        && !Parts::of(&text.0).is_ok_and(|parts| parts.kept(-9))
    {
        text.0 = q.to_string();
    }
}

pub(crate) fn canonical_option(text: &mut Option<Text>) {
    text.iter_mut().for_each(canonical);
}

/// As `canonical`, for the values of a resource list, which are also rounded up to thousandths.
pub(crate) fn canonical_map(map: &mut Option<BTreeMap<String, Text>>) {
    for text in map.iter_mut().flat_map(BTreeMap::values_mut) {
        if let Ok(q) = Quantity::parse(&text.0)
            && !Parts::of(&text.0).is_ok_and(|parts| parts.kept(-3))
        {
            text.0 = q.rounded_to_milli().to_string();
        }
    }
}

/// A number of bytes as a person would write it: in the largest unit that divides it.
pub fn said(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let (mut size, mut unit) = (bytes, 0);
    while size > 0 && size % 1024 == 0 && unit + 1 < UNITS.len() {
        size /= 1024;
        unit += 1;
    }
    format!("{size}{}", UNITS[unit])
}

#[test]
fn sizes_are_said_in_the_largest_unit_that_divides_them() {
    for (bytes, text) in [(1 << 30, "1Gi"), (1536 << 20, "1536Mi"), (1000, "1000"), (1 << 52, "4Pi"), (0, "0")] {
        assert_eq!(said(bytes), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms_are_upstreams() {
        for (text, want) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("1024Mi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("1023", "1023"),
            ("1Ki", "1Ki"),
            ("1000Ki", "1000Ki"),
            ("0.5Ki", "512"),
            ("0.0005Ki", "512m"),
            ("1.3Ki", "1331200m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.1", "100m"),
            ("100000", "100k"),
            ("12345", "12345"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("100e-2", "1"),
            ("1E", "1E"),
            ("1000E", "1000E"),
            ("0.0000000001", "1n"),
            ("-0.5Gi", "-512Mi"),
            ("-1m", "-1m"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("8Ei", "9223372036854775807"),
            ("1u", "1u"),
            ("1000n", "1u"),
        ] {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Ok(want.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for (text, want) in [
            ("", QuantityError::Format),
            ("x", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("1.2.3", QuantityError::Format),
            ("1Zi", QuantityError::Format),
            ("--1", QuantityError::Format),
            ("1K", QuantityError::Suffix),
            ("1mi", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1Gi5", QuantityError::Suffix),
        ] {
            assert_eq!(Quantity::parse(text), Err(want), "{text}");
        }
    }

    #[test]
    fn values_round_away_from_zero() {
        let q = |t| Quantity::parse(t).expect("a quantity");
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("-1500m").value(), -2);
        assert_eq!(q("1u").milli_value(), 1);
        assert_eq!(q("1u").rounded_to_milli().to_string(), "1m");
        assert_eq!(q("100E").value(), i64::MAX);
        assert!(q("1Gi") > q("1G") && q("1024Mi") == q("1Gi") && q("-1") < q("0"));
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((Quantity::ZERO + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("1Gi") - q("1Gi")).to_string(), "0");
    }

    proptest! {
        #[test]
        fn canonical_form_keeps_the_value_and_is_stable(n in -1_000_000_000_i64..1_000_000_000, suffix in "(n|u|m||k|M|G|T|Ki|Mi|Gi|Ti|e3|e-2)") {
            let q = Quantity::parse(&format!("{n}{suffix}")).expect("well formed");
            let text = q.to_string();
            let again = Quantity::parse(&text).expect("canonical form is readable");
            prop_assert_eq!(q, again);
            prop_assert_eq!(again.to_string(), text);
        }

        #[test]
        fn order_is_that_of_the_numbers(a in -1_000_000_i64..1_000_000, b in -1_000_000_i64..1_000_000) {
            prop_assert_eq!(Quantity::milli(a).cmp(&Quantity::milli(b)), a.cmp(&b));
            prop_assert_eq!((Quantity::milli(a) + Quantity::milli(b)).milli_value(), a + b);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn any_number_of_digits_is_read(text in "[+-]?[0-9]{1,60}(\\.[0-9]{0,60})?(Gi|E|e[0-9]{1,3}|e-[0-9]{1,3})?") {
            let q = Quantity::parse(&text).expect("well formed");
            // Binary forms have no fractions: they are rounded away from zero.
            let again = Quantity::parse(&q.to_string()).expect("canonical");
            let outwards = if q.sign() < 0 { again <= q } else { again >= q };
            prop_assert!(outwards);
            prop_assert_eq!(again.to_string(), q.to_string());
        }
    }
}
