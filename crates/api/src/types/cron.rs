//! When a CronJob runs: the five fields of its schedule, or a descriptor such as `@daily`.
const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Lowest and highest number of a field, and names that stand for numbers from the lowest up.
struct Bounds(u32, u32, &'static [&'static str]);

/// Minute, hour, day of the month, month, day of the week.
const FIELDS: [Bounds; 5] =
    [Bounds(0, 59, &[]), Bounds(0, 23, &[]), Bounds(1, 31, &[]), Bounds(1, 12, MONTHS), Bounds(0, 6, DAYS)];

/// What is wrong with a schedule, in the words of the parser that other implementations use.
pub(super) fn check(schedule: &str) -> Result<(), String> {
    let mut schedule = schedule;
    if let Some(rest) = schedule.strip_prefix("TZ=").or_else(|| schedule.strip_prefix("CRON_TZ=")) {
        schedule = rest.split_once(' ').map_or("", |(_, after)| after.trim());
    }
    if schedule.is_empty() {
        return Err("empty spec string".to_owned());
    }
    if schedule.starts_with('@') {
        return descriptor(schedule);
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    fields
        .iter()
        .zip(&FIELDS)
        .flat_map(|(field, bounds)| field.split(',').map(move |part| range(part, bounds)))
        .collect()
}

fn descriptor(schedule: &str) -> Result<(), String> {
    const KNOWN: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    let every = schedule.strip_prefix("@every ").map(|duration| {
        let units = |c: char| "hmsunµ".contains(c);
        duration.starts_with(|c: char| c.is_ascii_digit()) && duration.ends_with(units)
    });
    match every {
        Some(true) => Ok(()),
        Some(false) => Err(format!("failed to parse duration {schedule}")),
        None if KNOWN.contains(&schedule) => Ok(()),
        None => Err(format!("unrecognized descriptor: {schedule}")),
    }
}

/// `*`, `5`, `1-5`, `mon-fri`, `*/15`, `3-23/4`
fn range(text: &str, Bounds(low, high, names): &Bounds) -> Result<(), String> {
    let (span, step) = text.split_once('/').map_or((text, None), |(span, step)| (span, Some(step)));
    if step.is_some_and(|s| s.contains('/')) {
        return Err(format!("too many slashes: {text}"));
    }
    let number = |part: &str| match names.iter().position(|n| n.eq_ignore_ascii_case(part)) {
        Some(index) => Ok(low + u32::try_from(index).unwrap_or(0)),
        None => part
            .parse::<u32>()
            .map_err(|_| format!("failed to parse int from {part}: strconv.Atoi: parsing {part:?}: invalid syntax")),
    };
    let (start, end) = match span.split_once('-') {
        _ if matches!(span, "*" | "?") => (*low, *high),
        Some((_, rest)) if rest.contains('-') => return Err(format!("too many hyphens: {text}")),
        Some((start, end)) => (number(start)?, number(end)?),
        None if step.is_some() => (number(span)?, *high),
        None => (number(span)?, number(span)?),
    };
    if step.map(number).transpose()? == Some(0) {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    if start < *low {
        return Err(format!("beginning of range ({start}) below minimum ({low}): {text}"));
    }
    if end > *high {
        return Err(format!("end of range ({end}) above maximum ({high}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    Ok(())
}

#[test]
fn schedules() {
    for good in ["* * * * *", "*/15 3-23/4 1,15 jan-MAR mon-fri", "@daily", "@every 1h30m", "0 0 ? * 0"] {
        assert_eq!(check(good), Ok(()), "{good}");
    }
    for (bad, says) in [
        ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
        ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("@often", "unrecognized descriptor: @often"),
    ] {
        assert_eq!(check(bad), Err(says.to_owned()), "{bad}");
    }
}
