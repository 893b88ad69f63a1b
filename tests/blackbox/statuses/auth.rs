//! Who is let in, and that 401 comes before everything else.

use base64::Engine;

use super::*;

fn basic(pair: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    format!("Basic {encoded}")
}

/// Requests that would get as many different answers from a broker that let them in.
fn check_refused(what: &str, api: &Api) {
    let malformed = api.send("PUT", &async_at("a"), b"{");
    let answers = [
        ("catalog", api.get("/v2/catalog")),
        ("provision", api.provision("a", BASIC)),
        ("malformed body", malformed),
        ("deprovision", api.deprovision("a", BASIC)),
        ("last_operation", api.get(&format!("{}/last_operation", at("a")))),
        ("bind", api.put(&binding_at("a", "b"), &bind_body(BASIC))),
        ("fetch", api.get(&binding_at("a", "b"))),
        ("unbind", api.delete(&binding_at("a", "b"))),
        ("unknown path", api.get("/v2/nothing")),
        ("root", api.get("/")),
        ("wrong method", api.delete("/v2/catalog")),
        ("impossible id", api.get(&at("%00"))),
        ("wrong version", api.with_header("X-Broker-API-Version", "3.0").get("/v2/catalog")),
        ("no version", api.without_header("X-Broker-API-Version").get("/v2/catalog")),
    ];
    for (which, answer) in answers {
        let what = format!("{which} with {what}");
        check_error(&what, &answer, 401);
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        assert!(challenge.starts_with("Basic realm="), "{what}: {challenge:?}");
    }
}

#[test]
fn nobody_is_let_in_without_the_right_password() {
    let setup = impatient().with("BROKER_TOKEN", "the-token");
    for flags in [&[][..], &["-strict-osb"]] {
        let api = setup.api(flags);
        check_refused("nothing", &api.without_header("Authorization"));
        for wrong in [
            &basic("platform:let-me-out"),
            &basic("platform:"),
            &basic("platform"),
            &basic(":let-me-in"),
            &basic("platform:let-me-in "),
            &basic("Platform:let-me-in"),
            &basic("the-token"),
            "Basic",
            "Basic platform:let-me-in",
            "Basic !!!!",
            "Bearer",
            "Bearer ",
            "Bearer the-tokem",
            "Bearer the-token-and-more",
            "Bearer let-me-in",
            "Bearer platform:let-me-in",
            "Digest username=\"platform\"",
            "the-token",
        ] {
            let answer = api.with_header("Authorization", wrong).get("/v2/catalog");
            check_error(wrong, &answer, 401);
        }
        check_refused("a wrong password", &api.with_header("Authorization", &basic("platform:no")));
        check_refused("a wrong token", &api.with_header("Authorization", "Bearer no"));
        check_refused("an unknown scheme", &api.with_header("Authorization", "Digest the-token"));
    }
    assert_eq!(count(&setup, "resources"), "0", "a refused request left something");
}

#[test]
fn two_passwords_and_two_tokens_open_at_once() {
    let setup = impatient()
        .with("BROKER_USERNAME_2", "platform-2")
        .with("BROKER_PASSWORD_2", "with:colon and ü")
        .with("BROKER_TOKEN", "old-token")
        .with("BROKER_TOKEN_2", "new-token");
    let api = setup.api(&[]);
    for right in [
        &basic("platform:let-me-in"),
        &basic("platform-2:with:colon and ü"),
        "Bearer old-token",
        "Bearer new-token",
        "bearer new-token",
        &basic("platform:let-me-in").replace("Basic", "basic"),
    ] {
        let answer = api.with_header("Authorization", right).get("/v2/catalog");
        check_json(right, &answer, 200);
    }
    for mixed in [basic("platform:with:colon and ü"), basic("platform-2:let-me-in")] {
        let answer = api.with_header("Authorization", &mixed).get("/v2/catalog");
        check_error(&mixed, &answer, 401);
    }
}

#[test]
fn a_token_alone_opens_and_the_password_that_was_not_set_does_not() {
    let setup =
        impatient().with("BROKER_USERNAME", "").with("BROKER_PASSWORD", "").with("BROKER_TOKEN_2", "token");
    let api = setup.api(&[]);
    let ask = |header: &str| api.with_header("Authorization", header).get("/v2/catalog");
    check_json("token", &ask("Bearer token"), 200);
    check_error("empty password", &ask(&basic(":")), 401);
    check_error("empty token", &ask("Bearer "), 401);
    check_refused("nothing", &api.without_header("Authorization"));
}

#[test]
fn health_is_free() {
    let setup = impatient();
    let api = setup.api(&["-strict-osb"]);
    let anyone = api.without_header("Authorization").without_header("X-Broker-API-Version");
    let stranger =
        api.with_header("Authorization", &basic("platform:no")).with_header("X-Broker-API-Version", "1.0");
    for caller in [anyone, stranger] {
        for path in ["/healthz", "/readyz"] {
            let answer = caller.get(path);
            assert_eq!((answer.status, answer.text.as_str()), (200, "OK"), "{path}");
        }
    }
}

#[test]
fn without_any_credentials_everyone_is_let_in_and_the_log_warns() {
    let setup = impatient().with("BROKER_USERNAME", "").with("BROKER_PASSWORD", "");
    let api = setup.api(&[]);
    check_json("nothing sent", &api.without_header("Authorization").get("/v2/catalog"), 200);
    check_json("something sent", &api.with_header("Authorization", "Bearer x").get("/v2/catalog"), 200);
    let log = api.log();
    let warned = log.lines().any(|it| it.contains("WARN") && it.contains("BROKER_PASSWORD"));
    assert!(warned, "{log}");
}

#[test]
fn with_credentials_the_log_does_not_warn() {
    let log = impatient().api(&[]).log();
    assert!(!log.contains("BROKER_PASSWORD"), "{log}");
}

#[test]
fn the_actions_are_open_to_all_only_where_the_operator_says_so() {
    for (switch, is_open) in [("true", true), ("false", false), ("", false)] {
        let setup = impatient().with("ACTIONS_WITHOUT_PASSWORD", switch);
        let api = setup.api(&[]);
        add_instance(&setup, "a", "available");
        let anyone = api.without_header("Authorization").without_header("X-Broker-API-Version");
        let stranger = api.with_header("Authorization", &basic("platform:no"));
        for (who, caller) in [("anyone", anyone), ("a stranger", stranger)] {
            let what = format!("{who}, {switch:?}");
            let page = caller.get(&format!("{}/actions/rotate_credentials/schema", at("a")));
            let rotated = caller.send("PUT", &format!("{}/actions/credentials", at("a")), b"");
            if is_open {
                check_json(&what, &page, 200);
                check_json(&what, &rotated, 202);
            } else {
                check_error(&what, &page, 401);
                check_error(&what, &rotated, 401);
            }
            // Beside them nothing is open, and what only looks like an action is none.
            check_refused(&what, &caller);
            for path in ["/actions", "/actions/", "/actions/credentials/", "/actions/restart"] {
                let answer = caller.send("PUT", &format!("{}{path}", at("a")), b"");
                check_error(&format!("{path}, {what}"), &answer, 401);
            }
        }
        let tasks = if is_open { "1" } else { "0" };
        assert_eq!(
            count(&setup, "tasks"),
            tasks,
            "{switch:?}: one rotation, which both callers share, or none"
        );
        assert_eq!(count(&setup, "resources"), "1", "{switch:?}: a refused request left something");
    }
}
