//! The tags of bucket and user. *tag*: written anew from the rows, so that a later task repairs what an earlier
//! one missed.

use std::collections::BTreeSet;

use super::{BROKER_TAG, Ending, StepError, Work, skip_unknown};
use crate::aws::tag_value;
use crate::store::Instance;

/// The tag that says who pays.
const BILLING: &str = "billingcode";
/// The tags that are ours; all others are the operator's, and stay.
const OURS: [&str; 6] = [BILLING, "instance", BROKER_TAG, "Binding", "App", "Space"];
/// Longest value of a tag, in characters.
const VALUE_MAX: usize = 256;

/// A tag.
type Tag = (String, String);

/// The tags of something new.
pub(super) fn own_tags(work: &Work<'_>, instance: &Instance) -> Result<Vec<Tag>, StepError> {
    let id = instance.id.clone();
    let (broker, bindings) =
        work.store.transaction(move |tx| Ok::<_, StepError>((tx.broker_id()?, tx.bindings(&id)?)))?;
    let mut tags = vec![("instance", instance.id.clone()), (BROKER_TAG, broker)];
    if let Some(organization) = &instance.provisioned.organization {
        tags.push((BILLING, organization.clone()));
    }
    let spaces = bindings.iter().filter_map(|(id, _)| Some(parse_binding(id)?.1));
    let apps = bindings.iter().filter_map(|(id, app)| app.as_deref().or(parse_binding(id).map(|it| it.0)));
    tags.extend([
        ("Binding", join(bindings.iter().map(|(id, _)| id.as_str()).collect())),
        ("App", join(apps.collect())),
        ("Space", join(spaces.collect())),
    ]);
    tags.retain(|(key, value)| !value.is_empty() || matches!(*key, BILLING | "instance"));
    Ok(tags.into_iter().map(|(key, value)| (key.to_owned(), tag_value(&value))).collect())
}

/// Writes the tags of bucket and user anew, and the user's ARN into the row of an instance of the old broker.
pub(super) fn run(work: &Work<'_>) -> Result<Ending, StepError> {
    let instance = work.live_instance()?;
    let (caller, name) = (work.caller(), instance.name.as_str());
    if instance.user_arn.is_none()
        && let Some(user) = caller.get_user(name)?
    {
        work.write(move |tx, id| tx.save_user_arn(id, &user.arn))?;
    }
    let wanted = own_tags(work, &instance)?;
    let missing: Vec<&str> = OURS
        .into_iter()
        .filter(|it| !wanted.iter().any(|(key, _)| key == it))
        .filter(|it| *it != BILLING)
        .collect();
    let mut of_user = wanted.clone();
    of_user.extend(tag_bucket(work, name, &wanted, &missing)?);
    skip_unknown(caller.tag_user(name, &of_user), "TagUser", name)?;
    skip_unknown(caller.untag_user(name, &missing), "UntagUser", name)?;
    Ok(Ending::Tagged)
}

/// Leaves a bucket with the tags that are wanted, and without those of ours that are missing there. Gives the one that
/// the old broker wrote and the row does not know, who pays.
fn tag_bucket(
    work: &Work<'_>,
    name: &str,
    wanted: &[Tag],
    missing: &[&str],
) -> Result<Option<Tag>, StepError> {
    let caller = work.caller();
    let found = match caller.get_bucket_tagging(name) {
        Err(err) if err.is_unsupported() => {
            return skip_unknown(Err(err), "GetBucketTagging", name).map(|()| None);
        }
        other => other?,
    };
    let found = found.ok_or_else(|| StepError::Stuck("there is no such bucket".to_owned()))?;
    // What is not ours stays, and so does that one.
    let foreign =
        |(key, _): &Tag| !missing.contains(&key.as_str()) && !wanted.iter().any(|(it, _)| it == key);
    let mut all: Vec<Tag> = found.iter().filter(|it| foreign(it)).cloned().collect();
    all.extend(wanted.iter().cloned());
    if sorted(&all) != sorted(&found) {
        skip_unknown(caller.put_bucket_tagging(name, &all), "PutBucketTagging", name)?;
    }
    Ok(found.into_iter().find(|it| it.0 == BILLING && foreign(it)))
}

/// Tags in the order of their keys.
fn sorted(tags: &[Tag]) -> BTreeSet<&Tag> {
    tags.iter().collect()
}

/// Sorted names with a space between; what does not fit is counted at the end: `a b +2`.
fn join(names: BTreeSet<&str>) -> String {
    let whole = names.iter().copied().collect::<Vec<_>>().join(" ");
    if whole.chars().count() <= VALUE_MAX {
        return whole;
    }
    let (mut text, mut length) = (String::new(), 0);
    for (count, name) in names.iter().enumerate() {
        let rest = format!("+{}", names.len() - count);
        let next = name.chars().count() + 1;
        // room for this one, and for the number of those after it
        if length + next + rest.len() > VALUE_MAX {
            return text + &rest;
        }
        text.push_str(name);
        text.push(' ');
        length += next;
    }
    text
}

/// App and space out of a binding id of Akkeris, `<app>[--<dyno type>]-<space>`; an app has no dash.
fn parse_binding(id: &str) -> Option<(&str, &str)> {
    let is_uuid = id.len() == 36 && id.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    let (app, rest) = id.split_once('-').filter(|_| !is_uuid)?;
    let space = match rest.strip_prefix('-') {
        Some(rest) => rest.split_once('-')?.1,
        None => rest,
    };
    (!app.is_empty() && !space.is_empty()).then_some((app, space))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_and_space_come_from_the_binding_id() {
        for (id, found) in [
            ("api-default", Some(("api", "default"))),
            ("api-prod-east", Some(("api", "prod-east"))),
            ("api--worker-prod-east", Some(("api", "prod-east"))),
            ("api--worker", None),
            ("api-", None),
            ("-x", None),
            ("api", None),
            ("0124611d-2971-4533-8e38-a816a7a95ff1", None),
        ] {
            assert_eq!(parse_binding(id), found, "{id}");
        }
    }

    #[test]
    fn many_names_are_cut_and_counted() {
        let all: Vec<String> = (0..200).map(|it| format!("binding-{it:03}")).collect();
        let names = |count: usize| all.iter().take(count).map(String::as_str).collect::<BTreeSet<_>>();
        assert_eq!(join(names(2)), "binding-000 binding-001");
        assert_eq!(join(names(0)), "");
        for count in [21, 22, 30, 200] {
            let text = join(names(count));
            assert!(text.len() <= VALUE_MAX, "{count}: {}", text.len());
            let named = text.split(' ').filter(|it| it.starts_with("binding")).count();
            let rest = text.rsplit('+').next().and_then(|it| it.parse().ok()).filter(|_| text.contains('+'));
            assert_eq!(named + rest.unwrap_or(0), count, "{text}");
        }
        assert_eq!(join(BTreeSet::from([&*"x".repeat(300)])), "+1");
    }
}
