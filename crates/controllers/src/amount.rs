//! Amounts of resources, as far as decisions compare and add them.
use api::quantity::Quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// What a quantity says; nothing for one that is malformed, which the server never stores.
pub(crate) fn amount(text: &Text) -> Quantity {
    Quantity::try_from(text).unwrap_or(Quantity::ZERO)
}
