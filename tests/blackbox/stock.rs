//! Instances that are ready before anybody asks (`plans.preprovision`).

mod claims;
mod cuts;
mod failures;
mod promises;
mod upkeep;

use crate::support::*;

/// Asks for so many of a plan.
pub(crate) fn keep(setup: &Setup, plan: &str, count: usize) {
    let sql = format!("update plans set preprovision = {count} where plan = '{plan}'");
    setup.database.connect().batch_execute(&sql).unwrap();
}

/// Names of all that can be handed out, in the order of their age.
fn ready(setup: &Setup) -> Vec<String> {
    let sql = "select name from resources where not claimed and not deleted and status = 'available'
        order by created, id";
    setup.database.connect().query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// Waits until there are so many, and no others on their way.
pub(crate) fn wait_for_stock(setup: &Setup, count: usize) -> Vec<String> {
    let others =
        "select 'some' from resources where not claimed and not deleted and status <> 'available' limit 1";
    eventually(&format!("{count} are ready"), PATIENCE * 2, || {
        let ready = ready(setup);
        (ready.len() == count && setup.database.text(others).is_none()).then_some(ready)
    })
}

/// Says of all instances that they were looked at too long ago.
fn age_checks(setup: &Setup) {
    age_checks_by(setup, 11);
}

/// Says of all instances that they were looked at so many minutes ago.
fn age_checks_by(setup: &Setup, minutes: u32) {
    // The plans must not have been edited since.
    let sql = format!(
        "alter table plans disable trigger user;
        update plans set updated = updated - interval '1 day';
        alter table plans enable trigger user;
        update tasks set finished = now() - interval '{minutes} minutes' where action in ('provision', 'check')"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
}

/// Waits until a worker has looked after the stock once more: it then removes what nobody finished.
fn wait_for_look(setup: &Setup) {
    let id = unique();
    let sql = format!(
        "insert into resources (id, name, plan, status, created)
         values ('{id}', '', '{BASIC}', 'provisioning', now() - interval '2 hours')"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
    let gone = format!("select 'yes' from resources where id = '{id}' and deleted");
    eventually("a worker looks after the stock", PATIENCE, || setup.database.text(&gone));
}

/// Adds an instance to the stock without AWS, made just now; `changed` is SQL to spoil it with.
fn add_ready(setup: &Setup, id: &str, changed: &str) {
    let sql = format!(
        "insert into resources (id, name, plan, status, username, password, endpoint, organization, region, location)
         values ('{id}', 'bucket-{id}', '{BASIC}', 'available', 'AKIA{id}', 'secret', 'bucket-{id}', 'preprovisioned',
             'us-west-2', 'bucket-{id}.example');
         insert into tasks (task, resource, action, status, finished)
         values (gen_random_uuid(), '{id}', 'provision', 'finished', now());
         {changed}"
    );
    setup.database.connect().batch_execute(&sql).unwrap();
}
