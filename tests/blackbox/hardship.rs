//! What happens when the surroundings misbehave: a log that nobody reads, a bucket name that is somebody
//! else's. What a database can do is in `database`.

use std::process::Stdio;

use crate::relay::{Fault, Point, When};
use crate::support::*;

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let setup = Setup::new();
    let mut api = setup.api_command(&[]).env("PORT", "0").stderr(Stdio::piped()).spawn().unwrap();
    let mut log = std::io::BufReader::new(api.stderr.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert!(std::io::BufRead::read_line(&mut log, &mut line).unwrap() > 0);
        if let Some((_, address)) = line.split_once("listening: address=") {
            break address.trim().to_owned();
        }
    };
    drop(log);
    let client = Api::at(&address);
    eventually("it is ready", PATIENCE, || (client.get("/readyz").status == 200).then_some(()));
    for _ in 0..3 {
        assert_eq!(client.without_header("Authorization").get("/v2/catalog").status, 401);
        assert_eq!(client.get("/v2/catalog").status, 200);
    }
    assert!(std::process::Command::new("kill").arg(api.id().to_string()).status().unwrap().success());
    assert_eq!(eventually("it ends", PATIENCE, || api.try_wait().unwrap()).code(), Some(0));
}

#[test]
fn a_name_that_is_somebody_elses_is_given_up_and_leaves_nothing() {
    let relay = relay();
    let taken = Fault::Status(409, "<Error><Code>BucketAlreadyExists</Code></Error>".to_owned());
    relay.plan(Point::Named("CreateBucket".to_owned(), 1), When::Before, taken);
    let setup = Setup::new().with("AWS_ACCOUNT_ID", &setting("TEST_AWS_ACCOUNT_ID")).through(&relay);
    let (api, _worker) = (setup.api(&[]), setup.worker());
    api.provide("one", BASIC);
    let name = setup.database.text("select name from resources").unwrap();
    assert_eq!(api.bind("one", "b")["S3_BUCKET"].as_str(), Some(name.as_str()));
    let mut client = setup.database.connect();
    client.batch_execute("update tasks set run_at = now() where action = 'sweep'").unwrap();
    eventually("only the new name is left", PATIENCE, || {
        (setup.left_in_aws() == [name.clone(), name.clone()]).then_some(())
    });
    api.remove("one", BASIC);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}
