//! Reading resource quantities (`500m`, `1Gi`, `1e3`) as exact thousandths.
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Thousandths of the unit; `None` if the text is no quantity. Finer fractions round up, as upstream's do.
pub fn milli(text: &str) -> Option<i128> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (sign, number) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (numerator, denominator) = scale(suffix)?;
    let below = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(denominator)?;
    let above = mantissa.checked_mul(numerator)?.checked_mul(1000)?;
    Some(sign * ((above + below - 1) / below))
}

/// The factor of a suffix as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |n: u32| Some((1i128 << (10 * n), 1));
    let decimal = |n: u32| Some((10i128.pow(n), 1));
    match suffix {
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

/// Whole units, rounded up.
pub fn whole(text: &str) -> Option<i128> {
    milli(text).map(|m| m.div_euclid(1000) + i128::from(m.rem_euclid(1000) != 0))
}

/// A named amount of a resource list in thousandths; absent or unreadable: `None`.
pub fn milli_of(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    list?.get(name).and_then(|q| milli(&q.0)).and_then(|v| i64::try_from(v).ok())
}

/// A named amount of a resource list in whole units; absent or unreadable: `None`.
pub fn whole_of(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    list?.get(name).and_then(|q| whole(&q.0)).and_then(|v| i64::try_from(v).ok())
}

#[test]
fn reads_quantities_and_refuses_nonsense() {
    for (text, want) in [
        ("500m", Some(500)),
        ("1", Some(1000)),
        ("1.5", Some(1500)),
        ("1Ki", Some(1024 * 1000)),
        ("2Mi", Some(2 * 1024 * 1024 * 1000)),
        ("1e3", Some(1_000_000)),
        ("1E", Some(10i128.pow(21))),
        ("1n", Some(1)),
        ("-1", Some(-1000)),
        (".5", Some(500)),
        ("", None),
        ("x", None),
        ("1Q", None),
    ] {
        assert_eq!(milli(text), want, "{text}");
    }
    assert_eq!(whole("1500m"), Some(2));
    assert_eq!(whole("-1500m"), Some(-1));
}
