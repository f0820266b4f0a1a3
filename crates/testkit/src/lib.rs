//! Builders and helpers for tests. Dev-dependency only.
