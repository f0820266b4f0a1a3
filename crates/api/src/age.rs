//! Ages as `kubectl get` shows them.
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A duration in two or three significant figures: `45s`, `3m20s`, `5h`, `2d4h`, `400d`, `3y12d`.
pub fn human(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 3600;
    const DAY: i64 = 24;
    const YEAR: i64 = 365;
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    let (minutes, hours) = (seconds / MINUTE, seconds / HOUR);
    let days = hours / DAY;
    match () {
        // Clocks of two machines may differ a little: almost now.
        _ if seconds < -1 => "<invalid>".to_owned(),
        _ if seconds < 0 => "0s".to_owned(),
        _ if seconds < 2 * MINUTE => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % MINUTE, "s"),
        _ if minutes < 3 * 60 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 2 * DAY => format!("{hours}h"),
        _ if hours < 8 * DAY => pair(days, "d", hours % DAY, "h"),
        _ if days < 2 * YEAR => format!("{days}d"),
        _ if days < 8 * YEAR => pair(days / YEAR, "y", days % YEAR, "d"),
        _ => format!("{}y", days / YEAR),
    }
}

/// Time since `then`, or `<unknown>`.
pub fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    match then {
        Some(then) => human(now.duration_since(then).as_secs()),
        None => "<unknown>".to_owned(),
    }
}

pub(crate) fn age(then: Option<&Time>, now: Timestamp) -> String {
    since(then.map(|t| t.0), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_upstream_writes_them() {
        const M: i64 = 60;
        const H: i64 = 60 * M;
        const D: i64 = 24 * H;
        const Y: i64 = 365 * D;
        for (seconds, want) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (2 * M, "2m"),
            (2 * M + 5, "2m5s"),
            (10 * M + 5, "10m"),
            (179 * M, "179m"),
            (3 * H, "3h"),
            (7 * H + 59 * M, "7h59m"),
            (8 * H + 59 * M, "8h"),
            (47 * H, "47h"),
            (2 * D, "2d"),
            (2 * D + H, "2d1h"),
            (8 * D + H, "8d"),
            (2 * Y - 1, "729d"),
            (2 * Y, "2y"),
            (3 * Y + 12 * D, "3y12d"),
            (9 * Y + 12 * D, "9y"),
        ] {
            assert_eq!(human(seconds), want, "{seconds}");
        }
    }
}
