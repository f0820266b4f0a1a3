//! Notices when nothing happens any more, and gives up.
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gix::progress::{Id, MessageLevel, Step, StepShared, UNKNOWN, Unit};

use crate::process::{Failed, answer};

/// Counts what happens; gix sees it as its progress, and relies on each counter being one task's own.
pub(crate) struct Watch {
    own: StepShared,
    all: Counters,
    /// Of what is no task's.
    news: StepShared,
    /// Never set: gix asks for it.
    pub(crate) interrupt: &'static AtomicBool,
}

/// The counters of all tasks.
type Counters = Arc<Mutex<Vec<StepShared>>>;

static NEVER: AtomicBool = AtomicBool::new(false);

fn sum(all: &Counters) -> usize {
    let all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().fold(0, |sum, one| sum.wrapping_add(one.load(Ordering::Relaxed)))
}

impl Watch {
    /// Ends the process with an answer after that much silence, or time.
    pub(crate) fn start(silence: Duration, time: Duration) -> Self {
        let news = StepShared::default();
        let all: Counters = Arc::new(Mutex::new(vec![news.clone()]));
        let watch = Self { own: news.clone(), all: all.clone(), news, interrupt: &NEVER }.child();
        std::thread::spawn(move || {
            let (begun, mut last, mut seen) = (Instant::now(), Instant::now(), 0);
            loop {
                std::thread::sleep(Duration::from_millis(200));
                let now = sum(&all);
                if now != seen {
                    (last, seen) = (Instant::now(), now);
                }
                if last.elapsed() > silence {
                    let why = format!("nothing came from the server for {} s", silence.as_secs());
                    answer(&Err(Failed::repository(why)));
                }
                if begun.elapsed() > time {
                    let why =
                        format!("the clone is not done after {} minutes, which is the limit", time.as_secs() / 60);
                    answer(&Err(Failed::repository(why)));
                }
            }
        });
        watch
    }

    /// Something happened.
    pub(crate) fn tick(&self) {
        self.own.fetch_add(1, Ordering::Relaxed);
    }

    /// For another task.
    pub(crate) fn child(&self) -> Self {
        let own = StepShared::default();
        self.all.lock().unwrap_or_else(PoisonError::into_inner).push(own.clone());
        Self { own, all: self.all.clone(), news: self.news.clone(), interrupt: self.interrupt }
    }
}

impl gix::Count for Watch {
    fn set(&self, step: Step) {
        self.own.store(step, Ordering::Relaxed);
    }
    fn step(&self) -> Step {
        self.own.load(Ordering::Relaxed)
    }
    fn inc_by(&self, step: Step) {
        self.own.fetch_add(step, Ordering::Relaxed);
    }
    fn counter(&self) -> StepShared {
        self.own.clone()
    }
}

impl gix::Progress for Watch {
    fn init(&mut self, _: Option<Step>, _: Option<Unit>) {}
    fn set_name(&mut self, _: String) {
        self.news.fetch_add(1, Ordering::Relaxed);
    }
    fn name(&self) -> Option<String> {
        None
    }
    fn id(&self) -> Id {
        UNKNOWN
    }
    fn message(&self, _: MessageLevel, _: String) {
        // The server's words, too.
        self.news.fetch_add(1, Ordering::Relaxed);
    }
}

impl gix::NestedProgress for Watch {
    type SubProgress = Self;
    fn add_child(&mut self, _: impl Into<String>) -> Self {
        self.child()
    }
    fn add_child_with_id(&mut self, _: impl Into<String>, _: Id) -> Self {
        self.child()
    }
}
