//! What a tenant is given out of the stock is what the operator is paid for.

use super::*;
use crate::relay::{Point, When};

#[test]
fn who_pays_is_written_however_long_aws_refuses() {
    let relay = relay();
    let setup = Setup::new().through(&relay);
    let (api, mut worker) = (setup.api(&[]), setup.worker());
    keep(&setup, BASIC, 1);
    let stock = wait_for_stock(&setup, 1);
    assert_eq!(worker.terminate(), Some(0));
    assert_eq!(api.provision("one", BASIC).status, 201);
    keep(&setup, BASIC, 0);
    relay.plan(Point::Every("PutBucketTagging".to_owned()), When::Before, access_denied());
    let worker = setup.worker();
    worker.wait_for_log("kind=tag instance=\"one\" attempt=1");
    let now = "update tasks set run_at = now(), retries = 40 where action = 'tag' and status = 'pending'";
    let state = "select status || ' ' || (retries > 40) from tasks where action = 'tag'";
    eventually("it is tried again", PATIENCE, || {
        setup.database.connect().batch_execute(now).unwrap();
        (setup.database.text("select status::text from tasks where action = 'tag'")? != "failed")
            .then_some(())
    });
    eventually("it is tried after many attempts", PATIENCE, || {
        (setup.database.text(state)? == "pending true").then_some(())
    });
    relay.calm_down();
    setup.database.connect().batch_execute(now).unwrap();
    eventually("it is written who pays", PATIENCE, || {
        let tags = admin(&["s3api", "get-bucket-tagging", "--bucket", &stock[0]]).to_string();
        tags.contains("our org").then_some(())
    });
    api.remove("one", BASIC);
    assert_eq!(setup.left_in_aws(), Vec::<String>::new());
}
