//! The kinds of tasks that are tried.

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Makes an instance.
    Provision,
    /// Removes it.
    Delete,
    /// Looks at its name once more.
    Sweep,
    /// Makes another access key.
    Rotate,
    /// Removes the one before.
    RemovePreviousKey,
    /// Removes what a rotation that was given up has left.
    RemoveUnknownKeys,
    /// Makes it what the plan opposite promises.
    Change,
    /// Writes its tags anew.
    Tag,
    /// Looks at an instance of the stock.
    Check,
    /// Brings user policy and row in line with AWS; the tags that follow belong to it.
    Resync,
    /// Tells a webhook that a binding was made.
    Notice,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Kind; 11] = [
        Kind::Provision,
        Kind::Delete,
        Kind::Sweep,
        Kind::Rotate,
        Kind::RemovePreviousKey,
        Kind::RemoveUnknownKeys,
        Kind::Change,
        Kind::Tag,
        Kind::Check,
        Kind::Resync,
        Kind::Notice,
    ];

    /// The text in the table. The old broker's other two resyncs are this one.
    pub(super) fn action(self) -> &'static str {
        match self {
            Kind::Provision => "provision",
            Kind::Delete => "delete",
            Kind::Sweep => "sweep",
            Kind::Rotate => "rotate-credentials",
            Kind::RemovePreviousKey => "remove-previous-key",
            Kind::RemoveUnknownKeys => "remove-unknown-keys",
            Kind::Change => "change-plans",
            Kind::Tag => "tag",
            Kind::Check => "check",
            Kind::Resync => "resync-from-provider",
            Kind::Notice => "notify-create-binding-webhook",
        }
    }

    /// What is said of a task that did its work; of one that found nothing to do something else is said.
    pub(super) fn result(self) -> &'static str {
        match self {
            Kind::Provision => "available",
            Kind::Delete => "deleted",
            Kind::Sweep => "nothing was left",
            Kind::Rotate => "rotated",
            Kind::RemovePreviousKey => "the previous access key was removed",
            Kind::RemoveUnknownKeys => "no unknown access key is left",
            Kind::Change => "the plan was changed",
            Kind::Tag => "tagged",
            Kind::Check => "can be handed out",
            Kind::Resync => "in line with AWS",
            Kind::Notice => "delivered",
        }
    }

    /// Whether the instance's plan matters to it.
    pub(super) fn knows_plans(self) -> bool {
        !matches!(self, Kind::RemovePreviousKey | Kind::RemoveUnknownKeys | Kind::Notice)
    }

    /// Whether it leaves an instance behind.
    pub(super) fn leaves_instance(self) -> bool {
        !matches!(self, Kind::Delete | Kind::Sweep)
    }

    /// The calls to AWS that it makes at least.
    pub(super) fn calls_min(self) -> usize {
        match self {
            Kind::Notice => 0,
            Kind::RemovePreviousKey | Kind::RemoveUnknownKeys => 1,
            Kind::Provision
            | Kind::Delete
            | Kind::Sweep
            | Kind::Rotate
            | Kind::Change
            | Kind::Tag
            | Kind::Check
            | Kind::Resync => 2,
        }
    }
}
