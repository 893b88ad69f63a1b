//! Statements: their names, and which of them count.

/// A statement that counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    /// Verb and table in lower case.
    pub(crate) name: String,
    /// The how manieth of that name, from 1.
    pub(crate) occurrence: usize,
    /// The number of its connection, from 1.
    pub(crate) connection: usize,
}

impl Statement {
    /// `commit#2`.
    pub(crate) fn point(&self) -> String {
        format!("{}#{}", self.name, self.occurrence)
    }
}

/// Says of a statement's text whether it counts.
pub(crate) type Filter = fn(&str) -> bool;

/// Counts what a worker does for a task, and not what it does anyway: claims, renewals of leases, looks at
/// its start and at the stock, what sets up a connection.
pub(crate) fn steps_of_a_task(sql: &str) -> bool {
    let sql = sql.trim().to_ascii_lowercase();
    let is_claim = sql.starts_with("update tasks set status = 'started'");
    let is_heartbeat = sql.starts_with("update tasks set lease_until");
    // A check writes where its bucket is with the same words.
    let is_look = sql.starts_with("select") && sql.contains("region is null");
    let is_look = is_look || sql.contains("schema_version") || sql == "select 1";
    let is_look = is_look || sql.contains("not i.claimed") || sql.contains("pg_try_advisory_xact_lock");
    let is_upkeep = [
        "count(*) > 1",
        "metadata <> '{}'",
        "coalesce(username, password, next_secret)",
        "interval '30 days'",
        "started > now() - interval '1 hour'",
        "from pg_stat_activity",
    ];
    let is_look = is_look || is_upkeep.iter().any(|it| sql.contains(it));
    let is_census = sql.contains("census");
    let is_setup = sql.is_empty() || sql.starts_with("set ") || sql.starts_with("listen ");
    !(is_claim || is_heartbeat || is_look || is_census || is_setup)
}

/// Counts what an api does for a request that changes something, and not what it does anyway: the catalog,
/// the tasks that are waited for, health.
pub(crate) fn steps_of_a_request(sql: &str) -> bool {
    let is_catalog = sql.contains("from services") || sql.contains("order by p.created");
    let is_claim_of_stock = sql.contains("i.username <> ''");
    (steps_of_a_task(sql) || is_claim_of_stock) && !is_catalog && !sql.contains("::uuid[]")
}

/// Verb and table in lower case: `update tasks`. Without a table, the function; or the verb alone.
pub(crate) fn name(sql: &str) -> String {
    let spaced = sql.to_ascii_lowercase().replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split([' ', '\n', '\t', ',', ';']).filter(|it| !it.is_empty()).collect();
    let after = |word: &str| words.iter().skip_while(|it| **it != word).nth(1).copied();
    // `from` also stands in expressions, in parentheses.
    let mut depth = 0_i32;
    let outer = words.windows(2).find(|pair| {
        depth += i32::from(pair[0] == "(") - i32::from(pair[0] == ")");
        pair[0] == "from" && depth == 0
    });
    let verb = match words.first().copied().unwrap_or_default() {
        "start" => "begin",
        "end" => "commit",
        other => other,
    };
    let object = match verb {
        "select" | "delete" => match (outer, after("from")) {
            (Some(pair), _) => Some(pair[1]),
            (None, Some(inner)) => Some(inner),
            (None, None) => words.get(1).copied().filter(|_| words.get(2) == Some(&"(")),
        },
        "insert" => after("into"),
        "update" => words.get(1).copied(),
        _ => None,
    };
    [Some(verb), object].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[test]
fn statements_are_named_by_verb_and_table() {
    for (sql, name) in [
        ("BEGIN", "begin"),
        ("START TRANSACTION", "begin"),
        ("COMMIT;", "commit"),
        ("", ""),
        ("set statement_timeout = 1; set lock_timeout = 1", "set"),
        ("select 1", "select"),
        ("select pg_notify($1, $2)", "select pg_notify"),
        ("select id from resources where id = $1", "select resources"),
        ("select extract(epoch from now() - created) as age_s\n    from resources", "select resources"),
        ("select exists (select 1 from pg_catalog.pg_class)", "select pg_catalog.pg_class"),
        ("\n    Insert into tasks (task) values ($1)", "insert tasks"),
        ("update tasks set worker = null where task = (select t.task from tasks t)", "update tasks"),
        ("delete from bindings where resource = $1", "delete bindings"),
    ] {
        assert_eq!(self::name(sql), name, "{sql}");
    }
}
