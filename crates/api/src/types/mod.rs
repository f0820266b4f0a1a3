//! The rules of each kind, by group.
pub mod event;
mod pending;

use crate::contract::Column;

/// A column shown always.
pub(crate) const fn col(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column { name, kind, format: "", description, priority: 0 }
}

/// A column shown with `-o wide`.
pub(crate) const fn wide(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column { name, kind, format: "", description, priority: 1 }
}

/// The name column, first in almost every table.
pub(crate) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name of the object, unique among its kind and namespace.",
    priority: 0,
};

/// The age column.
pub(crate) const AGE: Column = col("Age", "string", "Time since the object was created.");
