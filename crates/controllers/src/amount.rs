//! Comparing quantities: every amount as whole billionths.
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Billionths of one unit (byte, core, piece).
pub(crate) type Nano = i128;

pub(crate) const ONE: Nano = 1_000_000_000;

/// What a quantity says; nothing for one that is malformed, which the server never stores.
pub(crate) fn nano(quantity: &Quantity) -> Nano {
    parse(&quantity.0).unwrap_or_default()
}

fn parse(text: &str) -> Option<Nano> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !".+-".contains(c)).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let negative = number.starts_with('-');
    let (whole, fraction) = number.trim_start_matches(['+', '-']).split_once('.').unwrap_or((number, ""));
    let whole = whole.trim_start_matches(['+', '-']);
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => ONE,
        "k" => ONE * 1_000,
        "M" => ONE * 1_000_000,
        "G" => ONE * 1_000_000_000,
        "T" => ONE * 1_000_000_000_000,
        "P" => ONE * 1_000_000_000_000_000,
        "E" => ONE * 1_000_000_000_000_000_000,
        "Ki" => ONE << 10,
        "Mi" => ONE << 20,
        "Gi" => ONE << 30,
        "Ti" => ONE << 40,
        "Pi" => ONE << 50,
        "Ei" => ONE << 60,
        _ => ONE.checked_mul(10i128.checked_pow(suffix.strip_prefix(['e', 'E'])?.parse().ok()?)?)?,
    };
    // What is finer than a billionth is rounded up, as upstream does.
    let divisor = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let product = digits.checked_mul(scale)?;
    let value = product / divisor + i128::from(product % divisor != 0);
    Some(if negative { -value } else { value })
}

#[test]
fn amounts_compare_as_numbers() {
    let table = [
        ("1Gi", "1024Mi", "1073741824"),
        ("1G", "976562.5Ki", "1000000000"),
        ("0.5", "500m", "5e-1"),
        ("1.5Gi", "1536Mi", "1610612736"),
        ("100n", "0.0000001", "0.1u"),
    ];
    for (a, b, c) in table {
        let [a, b, c] = [a, b, c].map(|t| (t, parse(t)));
        assert!(a.1 == b.1 && (b.1 == c.1 || c.0.contains("e-")), "{a:?} {b:?} {c:?}");
    }
    assert_eq!(parse("1e3"), parse("1k"));
    assert!(parse("2E") > parse("1Ei"));
    assert_eq!(parse("-1"), Some(-ONE));
    assert_eq!(parse("1x"), None);
}
