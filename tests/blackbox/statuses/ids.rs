//! Ids that platforms may choose, of instances and of bindings.

use super::*;

/// As sent, and as meant.
fn good_ids() -> Vec<(String, String)> {
    let mut ids: Vec<(String, String)> = [
        ("a%2Fb", "a/b"),
        ("with%20space", "with space"),
        ("plus+is%2Bplus", "plus+is+plus"),
        ("%C3%BCn%C3%AFc%C3%B6de-%E6%A1%B6-%F0%9F%AA%A3", "ünïcöde-桶-🪣"),
        ("what%3F%23%26%3D", "what?#&="),
        ("100%25", "100%"),
        ("%2E%2E", ".."),
        ("quote'%22%5C", "quote'\"\\"),
        ("app--web-space", "app--web-space"),
        ("last_operation", "last_operation"),
        ("~._-", "~._-"),
    ]
    .map(|(sent, meant)| (sent.to_owned(), meant.to_owned()))
    .into();
    ids.push(("x".repeat(255), "x".repeat(255)));
    ids.push(("%C3%BC".repeat(127), "ü".repeat(127)));
    ids
}

/// As sent.
fn bad_ids() -> Vec<String> {
    let mut ids = ["%00", "a%00b", "%0A", "a%0D%0Ab", "%1F", "%7F", "%C2%85", "%FF", "%C3", "%ED%A0%80"]
        .map(str::to_owned)
        .to_vec();
    ids.push("x".repeat(256));
    ids.push("%C3%BC".repeat(128));
    ids
}

#[test]
fn an_instance_may_have_any_id_that_can_be_kept() {
    let setup = impatient();
    let api = setup.api(&[]);
    for (sent, meant) in good_ids() {
        let operation = operation_of(&meant, &api.provision(&sent, BASIC));
        let kept = setup.database.connect().query("select 1 from resources where id = $1", &[&meant]);
        assert_eq!(kept.unwrap().len(), 1, "{meant}");
        assert_eq!(operation_of(&meant, &api.provision(&sent, BASIC)), operation);
        let state = api.get(&format!("{}/last_operation?operation={operation}", at(&sent)));
        check_json(&meant, &state, 200);
        operation_of(&meant, &api.deprovision(&sent, BASIC));
    }
    let (plain, encoded) = (api.provision("abc", BASIC), api.provision("%61%62%63", BASIC));
    assert_eq!(plain.json["operation"], encoded.json["operation"], "one id in two spellings");
}

#[test]
fn a_binding_may_have_any_id_that_can_be_kept() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    let api = setup.api(&["-strict-osb"]);
    for (sent, meant) in good_ids() {
        let path = binding_at("a", &sent);
        check_json(&meant, &api.put(&path, &bind_body(BASIC)), 201);
        let kept = setup.database.connect().query("select 1 from bindings where binding = $1", &[&meant]);
        assert_eq!(kept.unwrap().len(), 1, "{meant}");
        check_json(&meant, &api.get(&path), 200);
        check_empty(&meant, &api.delete(&format!("{path}?{}", ids_in_query())), 200);
    }
}

#[test]
fn ids_that_cannot_be_kept_are_400() {
    let setup = impatient();
    add_instance(&setup, "a", "available");
    for flags in [&[][..], &["-strict-osb"]] {
        let api = setup.api(flags);
        for id in bad_ids() {
            let query = ids_in_query();
            let binding = binding_at("a", &id);
            let answers = [
                api.provision(&id, BASIC),
                api.deprovision(&id, BASIC),
                api.get(&format!("{}/last_operation", at(&id))),
                api.put(&binding_at(&id, "b"), &bind_body(BASIC)),
                api.get(&binding_at(&id, "b")),
                api.delete(&format!("{}?{query}", binding_at(&id, "b"))),
                api.put(&binding, &bind_body(BASIC)),
                api.get(&binding),
                api.delete(&format!("{binding}?{query}")),
            ];
            for answer in &answers {
                check_error(&id, answer, 400);
            }
        }
    }
    assert_eq!((count(&setup, "resources"), count(&setup, "bindings")), ("1".into(), "0".into()));
}
