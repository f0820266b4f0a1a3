//! Explains one claim, volume, pod or class: whether its state is normal, what it waits for, and what mends it.
//!
//! In: [`Facts`], as they were read from any Kubernetes API, and the time. Out: an [`Answer`]. What a claim and a volume
//! make of each other is asked of `controllers::rules`, so that an explanation never differs from what the binder does.
//!
//! Absent on purpose: clock, I/O, async.
mod answer;
mod attach;
mod candidates;
mod capacity;
mod claim;
mod class;
mod facts;
mod missing;
mod mounts;
mod needs;
mod pod;
mod provisioner;
mod provisioning;
mod scheduling;
mod snapshot;
#[cfg(test)]
mod tests;
mod volume;

pub use answer::{Answer, Candidate, Verdict};
pub use facts::Facts;
use jiff::Timestamp;
pub use missing::no_room;
pub use needs::{Need, needs};

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Claim {
        namespace: String,
        name: String,
    },
    Volume(String),
    Pod {
        namespace: String,
        name: String,
    },
    Class(String),
    /// Of a kind that elsewhere may not be known.
    Snapshot {
        namespace: String,
        name: String,
    },
}

/// Explains an object; `None` if it is not among the facts.
pub fn explain(subject: &Subject, facts: &Facts, now: Timestamp) -> Option<Answer> {
    let (object, mut answer) = match subject {
        Subject::Claim { namespace, name } => {
            (format!("claim {namespace}/{name}"), claim::explain(facts, facts.claim(namespace, name)?, now))
        }
        Subject::Volume(name) => (format!("volume {name}"), volume::explain(facts, facts.volume(name)?)),
        Subject::Pod { namespace, name } => {
            (format!("pod {namespace}/{name}"), pod::explain(facts, facts.pod(namespace, name)?, now))
        }
        Subject::Class(name) => (format!("class {name}"), class::explain(facts, facts.class(name)?, now)),
        Subject::Snapshot { namespace, name } => {
            (format!("snapshot {namespace}/{name}"), snapshot::explain(facts, facts.snapshot(namespace, name)?, now))
        }
    };
    answer.object = object;
    answer.unread.clone_from(&facts.unread);
    Some(answer)
}
