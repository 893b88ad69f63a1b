//! GET of the catalog: its shape, and that edits of the tables show in it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

/// How soon an edit must show.
const SOON: Duration = Duration::from_secs(10);

/// Id, name, price in cents, versioned, encrypted.
const PLANS: [(&str, &str, i64, &str, &str); 4] = [
    (BASIC, "basic", 5_000, "false", "false"),
    (VERSIONED, "versioned", 15_000, "true", "false"),
    (SHIELD, "shield", 6_000, "false", "true"),
    (SHIELD_VERSIONED, "shield-versioned", 16_000, "true", "true"),
];

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    let found = of[field].as_str().unwrap_or_default();
    assert!(!found.is_empty(), "{field} of {of}");
    found
}

/// A moment of this or the last few years, as RFC 3339 writes it.
fn check_date(of: &Value, field: &str) {
    let date = text(of, field);
    let shape: String = date.chars().map(|it| if it.is_ascii_digit() { '9' } else { it }).collect();
    assert_eq!(shape, "9999-99-99T99:99:99Z", "{field}");
    assert!(date > "2020", "{field}: {date}");
}

/// What Akkeris reads of a plan, and what the specification demands.
fn check_plan(service: &Value, plan: &Value) {
    let metadata = &plan["metadata"];
    for field in ["id", "name", "description"] {
        assert_eq!(text(plan, field), text(metadata, field), "{field}");
    }
    assert_eq!(plan["free"], false);
    assert_eq!(metadata["addon_service"], json!({ "id": service["id"], "name": service["name"] }));
    assert_eq!(metadata["engine"], json!({ "type": "s3", "version": "v1" }));
    assert_eq!(metadata["key"], format!("{}:{}", text(service, "name"), text(plan, "name")));
    assert_eq!(metadata["compliance"], json!([]));
    assert_eq!(metadata["space_default"], false);
    assert_eq!(metadata["state"], "ga");
    text(metadata, "human_name");
    for field in ["installable_inside_private_network", "installable_outside_private_network"] {
        assert_eq!(metadata[field], true, "{field}");
    }
    check_date(metadata, "created_at");
    check_date(metadata, "updated_at");
    for schema in
        [&plan["schemas"]["service_instance"]["create"], &plan["schemas"]["service_binding"]["create"]]
    {
        assert!(schema.is_object(), "{}", plan["schemas"]);
        if let Some(parameters) = schema.get("parameters") {
            text(parameters, "$schema");
            assert!(!parameters.to_string().contains("$ref"));
        }
    }
}

/// The plans of the catalog by name, once it is as the test wants it.
fn soon(api: &Api, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(what, SOON, || {
        let answer = api.get("/v2/catalog");
        check_json(what, &answer, 200);
        Some(answer.json).filter(&wanted)
    })
}

/// A plan by its id, or null.
fn plan_of(catalog: &Value, id: &str) -> Value {
    let services = catalog["services"].as_array().unwrap();
    let mut plans = services.iter().flat_map(|it| it["plans"].as_array().unwrap());
    plans.find(|it| it["id"] == id).cloned().unwrap_or_default()
}

fn check_four_plans(catalog: &Value) {
    let services = catalog["services"].as_array().unwrap();
    assert_eq!(services.len(), 1);
    let service = &services[0];
    assert_eq!((text(service, "id"), text(service, "name")), (SERVICE, "akkeris-s3"));
    text(service, "description");
    assert_eq!(service["tags"], json!(["Data Stores", "S3"]));
    assert_eq!((&service["bindable"], &service["bindings_retrievable"]), (&json!(true), &json!(true)));
    assert!(service["plan_updateable"].is_boolean());
    assert!(text(&service["metadata"], "image").starts_with("data:image/"));
    text(&service["metadata"], "name");
    let plans = service["plans"].as_array().unwrap();
    assert_eq!(plans.len(), PLANS.len());
    let distinct = |field: &str| plans.iter().map(|it| text(it, field)).collect::<BTreeSet<_>>().len();
    assert_eq!((distinct("id"), distinct("name")), (PLANS.len(), PLANS.len()));
    for (id, name, cents, versioned, encrypted) in PLANS {
        let plan = plan_of(catalog, id);
        check_plan(service, &plan);
        assert_eq!(plan["name"], name);
        assert_eq!(
            plan["metadata"]["price"],
            json!({ "cents": cents, "unit": "month", "contract": false }),
            "{name}"
        );
        let attributes =
            json!({ "versioned": versioned, "encrypted": encrypted, "geo-replication": "false" });
        assert_eq!(plan["metadata"]["attributes"], attributes, "{name}");
    }
}

#[test]
fn everything_that_a_platform_reads_is_there() {
    let setup = impatient();
    for flags in [&[][..], &["-strict-osb"]] {
        let answer = setup.api(flags).get("/v2/catalog");
        check_json("catalog", &answer, 200);
        check_four_plans(&answer.json);
    }
}

#[test]
fn the_old_brokers_tables_give_the_old_brokers_catalog() {
    let setup = Setup::on(Database::of_the_old_broker());
    let catalog = setup.api(&[]).get("/v2/catalog").json;
    check_four_plans(&catalog);
    let service = &catalog["services"][0];
    assert_eq!(service["description"], "Amazon S3 Buckets. for object storage.");
    let image = "data:image/png;base64,iVBORw0KGgo=";
    assert_eq!(service["metadata"], json!({ "name": "Akkeris S3", "image": image }));
    for (id, description, human_name) in [
        (BASIC, "Amazon S3 Bucket - Non Versioned (Unencrypted)", "AWS S3 - Basic"),
        (VERSIONED, "Amazon S3 Bucket - Versioned (Unencrypted)", "AWS S3 - Versioned"),
        (SHIELD, "Amazon S3 Bucket - Non-Versioned (Encrypted)", "AWS S3 - Shield"),
        (SHIELD_VERSIONED, "Amazon S3 Bucket - Versioned (Encrypted)", "AWS S3 - Shield Versioned"),
    ] {
        let plan = plan_of(&catalog, id);
        assert_eq!(plan["description"], description);
        assert_eq!(plan["metadata"]["human_name"], human_name);
    }
}

#[test]
fn edits_of_a_plan_show_soon() {
    let setup = impatient();
    let api = setup.api(&[]);
    write(
        &setup,
        "update plans set cost_cents = 0, cost_unit = 'year', description = 'Now <free> & \"ünïque\".',
            human_name = 'Free', attributes = '{\"new\": [1]}', installable_inside_private_network = false
         where name = 'basic';
         update plans set deprecated = true where name = 'shield';
         update plans set beta = true where name = 'versioned';
         update plans set deleted = true where name = 'shield-versioned';
         insert into plans (plan, service, name, human_name, description, version, type, scheme, cost_cents,
             attributes, provider, provider_private_details)
         select '9d1b0a3e-0000-4000-8000-000000000003', service, 'cheap', 'Cheap', 'A cheap one.', 'v2', 's3', 's3',
             7, '{}', 'aws-s3', '{}' from services",
    );
    let catalog = soon(&api, "the deleted plan vanishes", |it| plan_of(it, SHIELD_VERSIONED).is_null());
    let basic = plan_of(&catalog, BASIC);
    assert_eq!(basic["free"], true);
    assert_eq!(basic["metadata"]["price"], json!({ "cents": 0, "unit": "year", "contract": false }));
    assert_eq!(basic["description"], "Now <free> & \"ünïque\".");
    assert_eq!(basic["metadata"]["human_name"], "Free");
    assert_eq!(basic["metadata"]["attributes"], json!({ "new": [1] }));
    assert_eq!(basic["metadata"]["installable_inside_private_network"], false);
    assert_eq!(plan_of(&catalog, SHIELD)["metadata"]["state"], "shutdown", "still listed");
    assert_eq!(plan_of(&catalog, VERSIONED)["metadata"]["state"], "beta");
    let cheap = plan_of(&catalog, "9d1b0a3e-0000-4000-8000-000000000003");
    assert_eq!((&cheap["name"], &cheap["metadata"]["engine"]["version"]), (&json!("cheap"), &json!("v2")));
    write(&setup, "update plans set deleted = false, deprecated = false");
    soon(&api, "both plans are back", |it| {
        plan_of(it, SHIELD_VERSIONED)["metadata"]["state"] == "ga"
            && plan_of(it, SHIELD)["metadata"]["state"] == "ga"
    });
}

#[test]
fn edits_of_an_offering_show_soon() {
    let setup = impatient();
    let api = setup.api(&[]);
    write(
        &setup,
        "update services set description = 'Other words.', categories = ' a , b,,c', deprecated = true;
         insert into services (service, name, human_name, description)
         values ('9d1b0a3e-0000-4000-8000-000000000001', 'empty', 'Empty', 'Has no plans.')",
    );
    let catalog = soon(&api, "new description", |it| it["services"][0]["description"] == "Other words.");
    assert_eq!(catalog["services"].as_array().unwrap().len(), 1, "an offering must have plans to be shown");
    assert_eq!(catalog["services"][0]["tags"], json!(["a", "b", "c"]));
    for (id, ..) in PLANS {
        assert_eq!(plan_of(&catalog, id)["metadata"]["state"], "shutdown");
    }
    write(&setup, "update services set deleted = true");
    soon(&api, "nothing is sold any more", |it| *it == json!({ "services": [] }));
}

#[test]
fn a_plan_with_instances_stays_in_the_catalog_and_they_stay_usable() {
    let setup = impatient();
    let api = setup.api(&[]);
    add_instance(&setup, "live", "available");
    write(
        &setup,
        &format!(
            "insert into resources (id, name, plan, claimed, status) values ('stock', 'n', '{SHIELD}', false, 'available');
             insert into resources (id, name, plan, claimed, status, deleted)
             values ('gone', 'n', '{SHIELD_VERSIONED}', true, 'available', true);
             update plans set deleted = true where name <> 'versioned';
             update plans set deprecated = true where name = 'versioned'"
        ),
    );
    let catalog = soon(&api, "what nobody has vanishes", |it| plan_of(it, SHIELD).is_null());
    assert!(plan_of(&catalog, SHIELD_VERSIONED).is_null(), "its instance is gone");
    assert_eq!(plan_of(&catalog, BASIC)["metadata"]["state"], "shutdown");
    assert_eq!(plan_of(&catalog, VERSIONED)["metadata"]["state"], "shutdown", "without instances too");
    for (instance, plan) in [("new", BASIC), ("new", VERSIONED), ("gone", SHIELD_VERSIONED)] {
        check_error("nothing new", &api.provision(instance, plan), 400);
    }
    assert_eq!(count(&setup, "tasks"), "0");
    check_live(&api);
    write(&setup, "update services set deleted = true");
    soon(&api, "its offering was deleted too", |it| plan_of(it, VERSIONED).is_null());
    check_live(&api);
    let catalog = api.get("/v2/catalog").json;
    assert_eq!(plan_of(&catalog, BASIC)["metadata"]["state"], "shutdown");
    assert_eq!(api.deprovision("live", BASIC).status, 202);
    write(&setup, "update resources set deleted = true where id = 'live'");
    soon(&api, "nothing is left", |it| *it == json!({ "services": [] }));
}

/// What a platform does with an instance of a plan that is not sold.
fn check_live(api: &Api) {
    check_provisioned("the same again", &api.provision("live", BASIC), 200);
    let bound = api.put(&binding_at("live", "b"), &bind_body(BASIC));
    assert!(matches!(bound.status, 200 | 201), "{}", bound.text);
    check_json("fetch", &api.get(&binding_at("live", "b")), 200);
    check_json("poll", &api.get(&format!("{}/last_operation", at("live"))), 200);
    check_empty("unbind", &api.delete(&format!("{}?{}", binding_at("live", "b"), ids_in_query())), 200);
}

#[test]
fn broken_rows_are_told_once_and_not_sold() {
    let setup = impatient();
    let api = setup.api(&[]);
    add_instance(&setup, "live", "available");
    let breakage = "update plans set attributes = '[1]' where name = 'basic';
        update plans set attributes = '\"x\"' where name = 'versioned';
        update plans set provider_private_details = '{\"versioned\": \"yes\"}' where name = 'shield';
        update plans set provider_private_details = '3' where name = 'shield-versioned'";
    let sound =
        "insert into plans (plan, service, name, human_name, description, version, type, scheme, attributes,
             provider, provider_private_details, created)
         select '9d1b0a3e-0000-4000-8000-000000000003', service, 'sound', '', ' ', 'v1', 's3', 's3', '{}',
             'aws-s3', '{}', '-infinity' from services";
    write(&setup, &format!("{breakage}; {sound}"));
    let catalog = soon(&api, "broken ones vanish", |it| plan_of(it, VERSIONED).is_null());
    let own = plan_of(&catalog, "9d1b0a3e-0000-4000-8000-000000000003");
    assert_eq!((&own["metadata"]["state"], &own["metadata"]["human_name"]), (&json!("ga"), &json!("sound")));
    assert_eq!(own["description"], "sound", "there is always something to say");
    assert!(plan_of(&catalog, SHIELD).is_null() && plan_of(&catalog, SHIELD_VERSIONED).is_null());
    let kept = plan_of(&catalog, BASIC);
    assert_eq!(
        (&kept["metadata"]["state"], &kept["metadata"]["attributes"]),
        (&json!("shutdown"), &json!({}))
    );
    for plan in [BASIC, VERSIONED, SHIELD, SHIELD_VERSIONED] {
        check_error("not sold", &api.provision("new", plan), 400);
    }
    assert_eq!(count(&setup, "tasks"), "0");
    check_live(&api);
    let told = |plan: &str| api.log().matches(&format!("plan not sold: plan={plan} ")).count();
    // a later look tells nothing that was told
    write(&setup, "update plans set human_name = 'Sound' where name = 'sound'");
    soon(&api, "another edit shows", |it| it.to_string().contains("\"Sound\""));
    assert_eq!([BASIC, VERSIONED, SHIELD, SHIELD_VERSIONED].map(told), [1, 1, 1, 1], "{}", api.log());
    write(
        &setup,
        "update plans set attributes = '{}', description = 'Mended.', provider_private_details = '{}'",
    );
    soon(&api, "all are mended", |it| plan_of(it, SHIELD)["metadata"]["state"] == "ga");
    let variable = "'{\"encrypted\": true, \"kmsKeyId\": \"$OTHER\"}'";
    write(
        &setup,
        &format!(
            "update plans set attributes = '1' where name = 'versioned';
             update plans set provider_private_details = {variable} where name = 'shield'"
        ),
    );
    soon(&api, "broken again", |it| plan_of(it, VERSIONED).is_null() && plan_of(it, SHIELD).is_null());
    assert_eq!([VERSIONED, SHIELD, SHIELD_VERSIONED].map(told), [2, 2, 1], "{}", api.log());
}

#[test]
fn a_name_belongs_to_the_oldest_row_on_sale() {
    let setup = impatient();
    let api = setup.api(&[]);
    let second = "9d1b0a3e-0000-4000-8000-000000000004";
    add_instance(&setup, "live", "available");
    write(
        &setup,
        &format!(
            "insert into plans (plan, service, name, human_name, description, version, type, scheme, attributes,
                 provider, provider_private_details, created)
             select '{second}', service, name, 'Second', description, version, type, scheme, attributes, provider,
                 provider_private_details, now() + interval '1 second' from plans where name = 'basic';
             update plans set cost_cents = 1 where name = 'shield'"
        ),
    );
    let catalog = soon(&api, "the edits show", |it| plan_of(it, SHIELD)["metadata"]["price"]["cents"] == 1);
    assert!(plan_of(&catalog, second).is_null());
    assert_eq!(plan_of(&catalog, BASIC)["name"], "basic");
    api.wait_for_log(&format!("plan not sold: plan={second} "));
    check_error("not in the catalog", &api.provision("new", second), 400);
    write(&setup, &format!("update plans set deleted = true where plan = '{BASIC}'"));
    let catalog = soon(&api, "the second has the name", |it| !plan_of(it, second).is_null());
    assert_eq!(plan_of(&catalog, second)["name"], "basic");
    let first = plan_of(&catalog, BASIC);
    assert_eq!(
        (&first["metadata"]["state"], text(&first, "name")),
        (&json!("shutdown"), &*format!("basic-{BASIC}"))
    );
    assert_eq!(first["metadata"]["key"], format!("akkeris-s3:basic-{BASIC}"));
}
