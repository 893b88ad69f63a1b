//! Rows in every state, and what is shown of them.

use super::*;

fn offering(id: &str, name: &str) -> OfferingRow {
    OfferingRow {
        id: id.to_owned(),
        name: name.to_owned(),
        description: "d".to_owned(),
        categories: String::new(),
        image: String::new(),
        human_name: "H".to_owned(),
        deprecated: false,
        deleted: false,
    }
}

fn plan(id: &str, name: &str) -> PlanRow {
    PlanRow {
        id: id.to_owned(),
        offering: "o".to_owned(),
        name: name.to_owned(),
        human_name: "H".to_owned(),
        description: "d".to_owned(),
        version: "v1".to_owned(),
        engine: "s3".to_owned(),
        cost_cents: 1,
        cost_unit: "month".to_owned(),
        attributes: "{}".to_owned(),
        details: "{}".to_owned(),
        inside_private_network: true,
        outside_private_network: true,
        beta: false,
        deprecated: false,
        deleted: false,
        created: "c".to_owned(),
        updated: "u".to_owned(),
    }
}

/// Names and states of the plans that are shown, and how many rows are complained of.
fn shown(offerings: &[OfferingRow], plans: &[PlanRow], live: &[&str]) -> (Vec<String>, usize) {
    let shelves = judge(offerings, plans);
    let live = live.iter().map(|it| (*it).to_owned()).collect();
    let catalog = show(&shelves, &live);
    let states = catalog.services.iter().flat_map(|service| {
        service.plans.iter().map(move |plan| {
            assert!(!plan.description.is_empty() && !service.description.is_empty());
            assert_eq!(plan.metadata["name"], plan.name.as_str());
            assert_eq!(plan.metadata["key"], format!("{}:{}", service.name, plan.name));
            format!("{}:{} {}", service.name, plan.name, plan.metadata["state"].as_str().unwrap())
        })
    });
    (states.collect(), complaints(&shelves).len())
}

#[test]
fn broken_plans_are_not_sold_and_stay_while_they_have_instances() {
    let sound = plan("1", "sound");
    for broken in [
        PlanRow { attributes: "[1]".into(), ..plan("2", "b") },
        PlanRow { attributes: "null".into(), ..plan("2", "b") },
        PlanRow { attributes: r#"{"x":1e999}"#.into(), ..plan("2", "b") },
        PlanRow { details: "3".into(), ..plan("2", "b") },
        PlanRow { details: r#"{"versioned":"yes"}"#.into(), ..plan("2", "b") },
        PlanRow { details: r#"{"versioned":true,"Versioned":true}"#.into(), ..plan("2", "b") },
        PlanRow { details: r#"{"kmsKeyId":{}}"#.into(), ..plan("2", "b") },
    ] {
        let (offerings, plans) = ([offering("o", "s3")], [sound.clone(), broken.clone()]);
        let (gone, complaints) = shown(&offerings, &plans, &[]);
        assert_eq!((gone, complaints), (vec!["s3:sound ga".to_owned()], 1), "{broken:?}");
        let (kept, _) = shown(&offerings, &plans, &["2"]);
        assert_eq!(kept, ["s3:b shutdown", "s3:sound ga"], "{broken:?}");
    }
    let details = r#"{"versioned":true,"kmsKeyId":null,"more":[]}"#.into();
    let fine = PlanRow { details, description: " ".into(), ..sound };
    assert_eq!(shown(&[offering("o", "s3")], &[fine], &[]), (vec!["s3:sound ga".to_owned()], 0));
}

#[test]
fn plans_that_are_not_sold_any_more_stay_while_they_must() {
    let deprecated = PlanRow { deprecated: true, beta: true, ..plan("1", "a") };
    let deleted = PlanRow { deleted: true, ..plan("2", "b") };
    let beta = PlanRow { beta: true, ..plan("3", "c") };
    let (offerings, plans) = ([offering("o", "s3")], [deprecated, deleted, beta]);
    assert_eq!(shown(&offerings, &plans, &[]), (vec!["s3:a shutdown".into(), "s3:c beta".into()], 0));
    let (all, _) = shown(&offerings, &plans, &["2"]);
    assert_eq!(all, ["s3:a shutdown", "s3:b shutdown", "s3:c beta"]);
}

#[test]
fn a_name_belongs_to_the_oldest_plan_on_sale() {
    let offerings = [offering("o", "s3")];
    let twins = [plan("1", "a"), plan("2", "a")];
    assert_eq!(shown(&offerings, &twins, &[]), (vec!["s3:a ga".into()], 1));
    let (both, _) = shown(&offerings, &twins, &["2"]);
    assert_eq!(both, ["s3:a ga", "s3:a-2 shutdown"]);
    // an operator puts a new plan in the place of an old one
    let replaced = [PlanRow { deleted: true, ..plan("1", "a") }, plan("2", "a")];
    assert_eq!(shown(&offerings, &replaced, &["1"]), (vec!["s3:a ga".into(), "s3:a-1 shutdown".into()], 0));
    let deprecated = [PlanRow { deprecated: true, ..plan("1", "a") }, plan("2", "a")];
    let (both, complaints) = shown(&offerings, &deprecated, &[]);
    assert_eq!((both, complaints), (vec!["s3:a ga".into(), "s3:a-1 shutdown".into()], 0));
}

#[test]
fn offerings_follow_the_same_rules() {
    let other = |id: &str| PlanRow { offering: "p".to_owned(), ..plan(id, "b") };
    let plans = [plan("1", "a"), other("2")];
    let twins = [offering("o", "s3"), offering("p", "s3")];
    assert_eq!(shown(&twins, &plans, &[]), (vec!["s3:a ga".into()], 1));
    let (both, _) = shown(&twins, &plans, &["2"]);
    assert_eq!(both, ["s3:a ga", "s3-p:b shutdown"]);
    let silent = [offering("o", "s3"), OfferingRow { description: String::new(), ..offering("p", "t") }];
    assert_eq!(shown(&silent, &plans, &[]), (vec!["s3:a ga".into(), "t:b ga".into()], 0));
    let nameless = [offering("o", "s3"), offering("p", "")];
    assert_eq!(shown(&nameless, &plans, &[]), (vec!["s3:a ga".into()], 1));
    let (both, _) = shown(&nameless, &plans, &["2"]);
    assert_eq!(both, ["p:b shutdown", "s3:a ga"]);
    // the deleted one is older; its plans' rows say that they are deleted too
    let successor = [OfferingRow { deleted: true, ..offering("o", "s3") }, offering("p", "s3")];
    let plans = [PlanRow { deleted: true, ..plan("1", "a") }, other("2")];
    assert_eq!(shown(&successor, &plans, &[]), (vec!["s3:b ga".into()], 0));
    let (both, _) = shown(&successor, &plans, &["1"]);
    assert_eq!(both, ["s3:b ga", "s3-o:a shutdown"]);
}
