//! Lists in strategic merge patches: merged by key, in an order that the client may ask for.
use serde_json::Value;

use super::{
    At, DIRECTIVE, ORDER, Object, StrategicError, drop_directives, drop_nulls, field_of, go_list, go_type,
    merge_object, no_merge_key, unknown_directive,
};

type Result<T> = std::result::Result<T, StrategicError>;

/// Handles all `$setElementOrder/<field>` directives together with the lists they are about, and takes both out of the
/// patch.
pub(super) fn merge_ordered(original: &mut Object, patch: &mut Object, at: At) -> Result<()> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(ORDER)).cloned().collect();
    for directive in directives {
        let Some(order) = patch.shift_remove(&directive) else { continue };
        let order = array(order)?;
        let field = field_of(&directive, ORDER).ok_or(StrategicError::BadOrderList)?;
        let old = original.get(field).cloned().map(array).transpose()?;
        let new = patch.get(field).cloned().map(array).transpose()?;
        let (element, plan) = at.list(field)?;
        check_order(new.as_deref().unwrap_or_default(), &order, plan.key)?;
        let merged = match (old.clone(), new) {
            (Some(old), None) => old,
            (None, Some(new)) => {
                let mut list = Value::Array(new);
                drop_nulls(&mut list);
                drop_directives(&mut list);
                array(list)?
            }
            (Some(old), Some(new)) if plan.merge => merge(old, new, element, plan.key)?,
            (Some(_), Some(new)) => new,
            (None, None) => continue,
        };
        let (asked, rest) = partition(merged, &order, plan.key)?;
        let sorted = arrange(asked, rest, &order, old.as_deref().unwrap_or_default(), plan.key)?;
        original.insert(field.to_owned(), Value::Array(sorted));
        patch.shift_remove(field);
    }
    Ok(())
}

/// Merges two lists: scalars as a set, objects by key.
pub(super) fn merge(old: Vec<Value>, patch: Vec<Value>, element: At, key: &'static str) -> Result<Vec<Value>> {
    if old.is_empty() && patch.is_empty() {
        return Ok(old);
    }
    if !check_elements(&[&old, &patch])? {
        let mut merged: Vec<Value> = Vec::with_capacity(old.len() + patch.len());
        for item in old.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        let (asked, rest) = partition(merged, &patch, "")?;
        return arrange(asked, rest, &patch, &old, "");
    }
    if key.is_empty() {
        return Err(StrategicError::ListWithoutMergeKey(element.go_kind().to_owned()));
    }
    let (old, patch) = take_directives(old, patch, key)?;
    let mut merged = old.clone();
    for item in &patch {
        let Value::Object(item) = item else { return Err(wrong_object(item)) };
        let wanted = item.get(key).ok_or_else(|| no_merge_key(item, key))?;
        match merged.iter_mut().find(|candidate| candidate.get(key) == Some(wanted)) {
            Some(Value::Object(found)) => *found = merge_object(std::mem::take(found), item.clone(), element)?,
            Some(other) => return Err(wrong_object(other)),
            None => {
                let mut new = Value::Object(item.clone());
                drop_nulls(&mut new);
                drop_directives(&mut new);
                merged.push(new);
            }
        }
    }
    let (asked, rest) = partition(merged, &patch, key)?;
    arrange(asked, rest, &patch, &old, key)
}

/// Carries out the `$patch` elements of a list; returns what is left of both lists.
fn take_directives(mut old: Vec<Value>, patch: Vec<Value>, key: &'static str) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut plain = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        let Value::Object(object) = &item else { return Err(wrong_object(&item)) };
        let Some(directive) = object.get(DIRECTIVE) else {
            plain.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let unwanted = object.get(key).ok_or_else(|| no_merge_key(object, key))?;
                old.retain(|item| item.get(key) != Some(unwanted));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(StrategicError::MergeDirectiveInList),
            _ => return Err(unknown_directive(directive, object)),
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (old, plain) })
}

/// The patch's elements must appear in the order list, in the same order.
fn check_order(patch: &[Value], order: &[Value], key: &'static str) -> Result<()> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut at = 0;
    for item in patch {
        if item.get(DIRECTIVE).is_some() {
            continue;
        }
        loop {
            let Some(candidate) = order.get(at) else {
                return Err(StrategicError::OrderMismatch { patch: go_list(patch), order: go_list(order) });
            };
            at += 1;
            if same(item, candidate, key)? {
                break;
            }
        }
    }
    Ok(())
}

fn same(left: &Value, right: &Value, key: &'static str) -> Result<bool> {
    if key.is_empty() {
        return Ok(left == right);
    }
    Ok(identity(left, key)? == identity(right, key)?)
}

/// By what an element is told from others: its key's value, or itself.
fn identity<'a>(item: &'a Value, key: &'static str) -> Result<&'a Value> {
    if key.is_empty() {
        return Ok(item);
    }
    let Value::Object(object) = item else { return Err(wrong_object(item)) };
    object.get(key).ok_or_else(|| no_merge_key(object, key))
}

/// Splits a list into what occurs in another one and what does not.
fn partition(list: Vec<Value>, by: &[Value], key: &'static str) -> Result<(Vec<Value>, Vec<Value>)> {
    let by = by.iter().map(|item| identity(item, key)).collect::<Result<Vec<_>>>()?;
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for item in list {
        if by.contains(&identity(&item, key)?) { inside.push(item) } else { outside.push(item) }
    }
    Ok((inside, outside))
}

/// Puts the elements that the client named in its order, and weaves the others in where the old list had them.
fn arrange(
    mut asked: Vec<Value>,
    mut rest: Vec<Value>,
    order: &[Value],
    old: &[Value],
    key: &'static str,
) -> Result<Vec<Value>> {
    let order = order.iter().map(|item| identity(item, key)).collect::<Result<Vec<_>>>()?;
    let old = old.iter().map(|item| identity(item, key)).collect::<Result<Vec<_>>>()?;
    let place = |item: &Value, list: &[&Value]| {
        identity(item, key).ok().and_then(|wanted| list.iter().position(|found| *found == wanted))
    };
    asked.sort_by_key(|item| place(item, &order));
    rest.sort_by_key(|item| place(item, &old));
    let mut sorted = Vec::with_capacity(asked.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for item in asked {
        let here = place(&item, &old);
        while let Some(other) = rest.next_if(|other| matches!((place(other, &old), here), (Some(l), Some(r)) if l < r))
        {
            sorted.push(other);
        }
        sorted.push(item);
    }
    sorted.extend(rest);
    Ok(sorted)
}

/// Whether the elements of all lists are objects; they must be of one type.
pub(super) fn check_elements(lists: &[&Vec<Value>]) -> Result<bool> {
    let mut kind = "";
    for item in lists.iter().flat_map(|list| list.iter()) {
        let this = go_type(item);
        if item.is_array() {
            return Err(StrategicError::ListOfLists);
        }
        if !kind.is_empty() && kind != this {
            let all: Vec<String> = lists.iter().map(|list| go_list(list)).collect();
            return Err(StrategicError::MixedElements(format!("[{}]", all.join(" "))));
        }
        kind = this;
    }
    Ok(kind.starts_with("map"))
}

fn array(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(list) => Ok(list),
        // What Go reads null as.
        Value::Null => Ok(Vec::new()),
        other => Err(StrategicError::WrongType { expected: "[]interface {}", actual: go_type(&other) }),
    }
}

fn wrong_object(item: &Value) -> StrategicError {
    StrategicError::WrongType { expected: "map[string]interface {}", actual: go_type(item) }
}
