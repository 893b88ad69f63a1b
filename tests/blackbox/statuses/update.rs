//! PATCH of an instance that is not there to be changed: every other status.

use super::*;

/// All of the rows and tasks.
fn everything(setup: &Setup) -> Option<String> {
    setup.database.text(
        "select concat_ws(' | ', (select string_agg(r::text, ',' order by id) from resources r),
             (select string_agg(t::text, ',' order by task) from tasks t))",
    )
}

#[test]
fn only_a_usable_instance_changes_its_plan() {
    let setup = impatient();
    let api = setup.api(&[]);
    add_instance(&setup, "made", "provisioning");
    add_task(&setup, "made", "provision", "pending");
    add_instance(&setup, "removed", "deprovisioning");
    add_task(&setup, "removed", "delete", "pending");
    add_failed(&setup, "failed", "pending");
    add_failed(&setup, "cleaned", "finished");
    add_deleted(&setup, "deleted");
    let before = everything(&setup);
    for instance in ["made", "removed"] {
        check_code(instance, &api.change(instance, VERSIONED), "ConcurrencyError");
    }
    for (instance, status) in [("failed", 422), ("cleaned", 422), ("deleted", 404), ("unknown", 404)] {
        check_error(instance, &api.change(instance, VERSIONED), status);
    }
    assert_eq!(everything(&setup), before, "a refused request left something");
}
