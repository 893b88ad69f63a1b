//! Headers that every request may carry: version, request identity, originating identity.

use super::*;

const VERSION: &str = "X-Broker-API-Version";

#[test]
fn versions_from_2_13_on_are_served_and_others_are_412() {
    let setup = impatient();
    for flags in [&[][..], &["-strict-osb"]] {
        let api = setup.api(flags);
        for good in ["2.13", "2.14", "2.15", "2.16", "2.17", "2.18"] {
            check_json(good, &api.with_header(VERSION, good).get("/v2/catalog"), 200);
        }
        for bad in ["2.12", "2.9", "2.1", "1.13", "3.0", "20.13", "2", "2.", "2.x", "2.-14", "latest", ","] {
            let caller = api.with_header(VERSION, bad);
            let answers = [
                ("catalog", caller.get("/v2/catalog")),
                ("provision", caller.provision("a", BASIC)),
                ("malformed body", caller.send("PUT", &async_at("a"), b"{")),
                ("impossible id", caller.get(&at("%00"))),
            ];
            for (which, answer) in answers {
                let what = format!("{which} with {bad:?}");
                check_error(&what, &answer, 412);
                let description = answer.json["description"].as_str().unwrap();
                assert!(description.contains("2.13"), "{what}: {description}");
            }
        }
    }
    assert_eq!(count(&setup, "resources"), "0", "a refused request left something");
}

#[test]
fn a_missing_version_is_served_by_default_and_400_in_strict_mode() {
    let setup = impatient();
    let akkeris = setup.api(&[]);
    check_json("default", &akkeris.without_header(VERSION).get("/v2/catalog"), 200);
    operation_of("default", &akkeris.without_header(VERSION).provision("a", BASIC));
    let strict = setup.api(&["-strict-osb"]);
    for answer in [
        strict.without_header(VERSION).get("/v2/catalog"),
        strict.without_header(VERSION).provision("b", BASIC),
        strict.without_header(VERSION).send("PUT", &async_at("b"), b"{"),
    ] {
        check_error("strict", &answer, 400);
        let description = answer.json["description"].as_str().unwrap();
        assert!(description.contains(VERSION), "{description}");
    }
    assert_eq!(count(&setup, "resources where id = 'b'"), "0");
}

#[test]
fn the_identity_of_a_request_comes_back_with_whatever_answer() {
    let setup = impatient();
    let api = setup.api(&[]);
    let identity = "26cba9de-6f42-4c55-8b1f-2a1d6b8f0c9e";
    let caller = api.with_header("X-Broker-API-Request-Identity", identity);
    for (status, answer) in [
        (200, caller.get("/v2/catalog")),
        (202, caller.provision("a", BASIC)),
        (404, caller.get("/v2/nothing")),
        (405, caller.delete("/v2/catalog")),
        (410, caller.deprovision("b", BASIC)),
        (400, caller.send("PUT", &async_at("a"), b"{")),
        (412, caller.with_header(VERSION, "3.0").get("/v2/catalog")),
        (401, caller.without_header("Authorization").get("/v2/catalog")),
    ] {
        assert_eq!(answer.status, status, "{}", answer.text);
        assert_eq!(answer.header("x-broker-api-request-identity"), Some(identity), "{status}");
    }
    assert_eq!(api.get("/v2/catalog").header("x-broker-api-request-identity"), None);
    assert!(api.log().contains(identity), "operators look for it in the log");
}

#[test]
fn an_originating_identity_of_nonsense_harms_nobody() {
    let setup = impatient();
    let api = setup.api(&[]);
    for (index, identity) in [
        "cloudfoundry eyJ1c2VyX2lkIjogIjY4M2VhNzQ4In0=",
        "cloudfoundry",
        "cloudfoundry !!!!",
        "cloudfoundry bm90IEpTT04=",
        "cloudfoundry /////w==",
        "   ",
        "",
        "a b c d",
        &"x".repeat(4_000),
    ]
    .iter()
    .enumerate()
    {
        let caller = api.with_header("X-Broker-API-Originating-Identity", identity);
        let answers = [caller.get("/v2/catalog"), caller.provision(&format!("i{index}"), BASIC)];
        for answer in answers {
            let served = matches!(answer.status, 200 | 202 | 400);
            assert!(served, "{identity:?}: {} {}", answer.status, answer.text);
        }
    }
}
