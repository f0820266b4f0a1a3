//! What the server and the engine see of a kind.
use jiff::Timestamp;
use serde_json::Value;

/// Whether objects live in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespace,
}

/// One row of the table of kinds.
pub struct Kind {
    pub kind: &'static str,
    /// Lower-case plural, as in paths.
    pub plural: &'static str,
    pub singular: &'static str,
    pub short: &'static [&'static str],
    pub categories: &'static [&'static str],
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub scope: Scope,
    /// Subresources besides the object itself: `status`, `binding`, `eviction`, `log`, `exec`, ...
    pub subresources: &'static [Subresource],
    /// OpenAPI name of the type, `io.k8s.api.core.v1.Pod`.
    pub schema: &'static str,
    /// Columns of `kubectl get`.
    pub columns: &'static [Column],
    /// Set where this is another face of objects stored as another kind (`events.k8s.io` Event: core Event).
    pub face_of: Option<&'static Face>,
    pub strategy: &'static dyn Strategy,
}

/// How a kind that is stored as another one is read and written.
pub struct Face {
    /// Group and plural whose objects these are.
    pub group: &'static str,
    pub plural: &'static str,
    /// Turns a stored object into this kind (apiVersion included).
    pub read: fn(&mut Value),
    /// Turns an object of this kind into the stored one.
    pub write: fn(&mut Value),
}

/// A subresource, as discovery shows it.
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    pub name: &'static str,
    /// Kind of its body, if not the parent's, as (group, version, kind): `("policy", "v1", "Eviction")`.
    pub body: Option<(&'static str, &'static str, &'static str)>,
    pub verbs: &'static [&'static str],
}

/// A column of a table, as upstream's server prints it.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`, `boolean`
    pub kind: &'static str,
    /// `name` for the name column, else empty.
    pub format: &'static str,
    pub description: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
}

/// One mistake in an object, as it appears in `details.causes` and in the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// `spec.containers[0].name`
    pub field: String,
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`, `FieldValueForbidden`, `FieldValueDuplicate`,
    /// `FieldValueTooLong`, `FieldValueTooMany`, `FieldValueNotFound`, `FieldValueTypeInvalid`
    pub reason: &'static str,
    /// Upstream's wording after the field: `Required value: name or generateName is required`.
    pub message: String,
}

/// A named value that a field selector can ask for: `("spec.nodeName", "a")`.
pub type SelectableFields = Vec<(&'static str, String)>;

/// The rules of one kind. Objects are JSON that already fits the kind's schema.
///
/// The server itself handles `metadata` (names, uid, resourceVersion, timestamps, deletion) and its generic validation.
pub trait Strategy: Sync + Send {
    /// Fills in upstream's defaults and canonical forms (quantities). Idempotent.
    fn default(&self, object: &mut Value);
    /// Adjusts a new object before validation: drops what clients may not set (`status`), sets the first phase.
    fn prepare_create(&self, object: &mut Value);
    /// Adjusts an update of the main resource: keeps `status`, keeps what is ignored silently.
    fn prepare_update(&self, new: &mut Value, old: &Value);
    /// Adjusts an update of the `status` subresource: keeps everything else.
    fn prepare_status_update(&self, new: &mut Value, old: &Value);
    /// Whether two states differ in what `metadata.generation` counts; `None` if the kind has no generation.
    fn generation_changes(&self, new: &Value, old: &Value) -> Option<bool>;
    /// Mistakes in an object to be created.
    fn validate(&self, object: &Value) -> Vec<FieldError>;
    /// Mistakes in an update, `validate` included.
    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError>;
    /// Mistakes in a status update.
    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError>;
    /// Warnings for the `Warning` header.
    fn warnings(&self, object: &Value) -> Vec<String>;
    /// Warnings about a changed object.
    fn update_warnings(&self, object: &Value) -> Vec<String> {
        self.warnings(object)
    }
    /// Cells in the order of `Kind::columns`.
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value>;
    /// Fields that a field selector may name besides `metadata.name` and `metadata.namespace`.
    fn selectable(&self, object: &Value) -> SelectableFields;
    /// Names of those fields, for refusing others.
    fn selectable_names(&self) -> &'static [&'static str];
    /// The seconds a graceful deletion gives this object, asked for `requested`; 0: delete at once.
    fn deletion_grace(&self, object: &Value, requested: Option<i64>) -> i64 {
        let _ = (object, requested);
        0
    }
}
