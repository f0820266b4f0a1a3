//! When a probe's answers change a container's health.
use k8s_openapi::api::core::v1::{Container, Probe};

/// Which of a container's probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    Liveness,
    Readiness,
    Startup,
}

impl ProbeKind {
    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
            Self::Startup => "Startup",
        }
    }
    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Startup => container.startup_probe.as_ref(),
        }
    }
}

/// What the probes have found so far about one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    pub started: bool,
    pub ready: bool,
    pub alive: bool,
    /// The startup probe gave up.
    pub never_started: bool,
}

impl Health {
    /// Before any answer: without a probe of a kind, what it would find is taken for granted.
    pub fn new(container: &Container) -> Self {
        Self {
            started: container.startup_probe.is_none(),
            ready: container.readiness_probe.is_none(),
            alive: true,
            never_started: false,
        }
    }

    /// Takes over a verdict.
    pub fn set(&mut self, kind: ProbeKind, good: bool) {
        match kind {
            ProbeKind::Liveness => self.alive = good,
            ProbeKind::Readiness => self.ready = good,
            ProbeKind::Startup if good => self.started = true,
            ProbeKind::Startup => self.never_started = true,
        }
    }
}

/// Counts answers of one probe.
#[derive(Debug, Clone)]
pub struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
}

impl Counter {
    /// Thresholds of the probe, with the API's defaults.
    pub fn new(probe: &Probe) -> Self {
        let at_least_one =
            |v: Option<i32>, default: u32| v.and_then(|v| u32::try_from(v).ok()).unwrap_or(default).max(1);
        Self {
            success_threshold: at_least_one(probe.success_threshold, 1),
            failure_threshold: at_least_one(probe.failure_threshold, 3),
            last: None,
            run: 0,
        }
    }

    /// Takes one answer; gives the verdict once enough equal answers came in a row, and again with each further one.
    pub fn answer(&mut self, good: bool) -> Option<bool> {
        self.run = if self.last == Some(good) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(good);
        let enough = if good { self.success_threshold } else { self.failure_threshold };
        (self.run >= enough).then_some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(success: i32, failure: i32, answers: &str) -> String {
        let probe = Probe { success_threshold: Some(success), failure_threshold: Some(failure), ..Probe::default() };
        let mut counter = Counter::new(&probe);
        let show = |v| match v {
            None => '.',
            Some(true) => 'g',
            Some(false) => 'b',
        };
        answers.chars().map(|c| show(counter.answer(c == 'g'))).collect()
    }

    #[test]
    fn verdicts_need_enough_equal_answers_in_a_row() {
        for (success, failure, answers, want) in [
            (1, 3, "ggg", "ggg"),
            (1, 3, "bbb", "..b"),
            (1, 3, "bbgbbb", "..g..b"),
            (2, 1, "gg", ".g"),
            (2, 1, "gbgg", ".b.g"),
            (3, 2, "ggbggg", ".....g"),
            (1, 1, "bgb", "bgb"),
            (0, 0, "gb", "gb"),
        ] {
            assert_eq!(run(success, failure, answers), want, "{success} {failure} {answers}");
        }
    }

    #[test]
    fn health_starts_from_what_is_probed() {
        let probe = Some(Probe::default());
        let c = Container { readiness_probe: probe.clone(), ..Container::default() };
        assert_eq!(Health::new(&c), Health { started: true, ready: false, alive: true, never_started: false });
        let c = Container { startup_probe: probe, ..Container::default() };
        let mut h = Health::new(&c);
        assert!(!h.started && h.ready);
        h.set(ProbeKind::Startup, false);
        assert!(h.never_started && !h.started);
        h.set(ProbeKind::Startup, true);
        h.set(ProbeKind::Liveness, false);
        h.set(ProbeKind::Readiness, true);
        assert!(h.started && !h.alive && h.ready);
    }
}
