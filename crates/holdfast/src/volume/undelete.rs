//! `holdfast volume undelete`.
use driver::admin::{Kept, UndeleteRequest};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::{
    Named,
    drivers::{Local, Place},
    object, quantity,
};
use crate::{
    cli::volume::VolumeObject,
    client::Error,
    errors::{said, say},
};

pub async fn run(
    place: &Place,
    text: &str,
    claim: Option<Named>,
    any_claim: bool,
    asked: &VolumeObject,
) -> Result<(), Error> {
    let drivers = place.drivers().await?;
    let (driver, kept) = find(place, &drivers, text).await?;
    let noted = || Named { namespace: kept.namespace.clone(), name: kept.claim.clone() };
    let claim = claim.or_else(|| (!any_claim && !kept.claim.is_empty()).then(noted));
    let back = driver.admin.undelete(UndeleteRequest { handle: kept.handle.clone() }).await;
    let back = back.map_err(|s| driver.refused(&s))?;
    if let Some(there) = object::existing(place, &driver.name, &back).await? {
        let name = there.metadata.name.unwrap_or_default();
        eprintln!("The volume is there, with its PersistentVolume.");
        return say(name);
    }
    let name = object::name_for(&back.handle);
    let made = object::make(place, driver, &back, &name, claim.as_ref(), asked).await.map_err(|error| {
        let why = crate::errors::story(error.as_ref());
        format!("the volume is back, but it has no PersistentVolume: {why}; run this again when that is mended")
    })?;
    match &claim {
        None => {
            let class = made["spec"]["storageClassName"].as_str().unwrap_or_default();
            eprintln!("Any claim of class {class:?} may have it, up to {}.", quantity(back.bytes));
        }
        Some(claim) => tell(place, claim, &name, back.bytes).await?,
    }
    say(name)
}

/// Says how the claim comes to the volume that is kept for it.
async fn tell(place: &Place, claim: &Named, volume: &str, bytes: u64) -> Result<(), Error> {
    let existing: Option<PersistentVolumeClaim> = place.find(&object::claim_path(claim)).await?;
    let has = existing.as_ref().and_then(|c| c.spec.as_ref()?.volume_name.clone()).filter(|v| !v.is_empty());
    match (existing, has) {
        (Some(_), Some(other)) if other != volume => eprintln!(
            "It is kept for claim {claim}, which has volume {other} now: delete that claim and apply it again, or delete \
             PersistentVolume {volume} and undelete it --claim another one."
        ),
        (Some(_), _) => eprintln!("It is kept for claim {claim}."),
        (None, _) => {
            eprintln!("It is kept for claim {claim}: apply that again, {} or less.", quantity(bytes));
        }
    }
    Ok(())
}

/// The volume that is meant: of deleted ones that which was deleted last, else one that is there.
async fn find<'a>(place: &Place, drivers: &'a [Local], text: &str) -> Result<(&'a Local, Kept), Error> {
    let claim = Named::parse(text, &place.session).ok();
    let is_it = |kept: &Kept| {
        let of_claim = claim.as_ref().is_some_and(|c| c.namespace == kept.namespace && c.name == kept.claim);
        of_claim || kept.handle == text || object::name_for(&kept.handle) == text
    };
    let mut found = Vec::new();
    for driver in drivers {
        let all = driver.volumes().await?.into_iter();
        found.extend(all.filter(&is_it).map(|kept| (driver, kept)));
    }
    found.sort_by_key(|(_, kept)| kept.deleted);
    let Some(last) = found.pop() else {
        return said(format!(
            "there is no deleted volume of {text:?}: `holdfast volume list --deleted` shows what can come back; what was \
             deleted for longer than `up --keep-deleted` says, or whose space was needed, is gone"
        ));
    };
    let others: Vec<&str> = found.iter().filter(|(_, k)| k.deleted != 0).map(|(_, k)| k.handle.as_str()).collect();
    if !others.is_empty() {
        eprintln!("Of several, {} was deleted last; before it: {}.", last.1.handle, others.join(", "));
    }
    Ok(last)
}
