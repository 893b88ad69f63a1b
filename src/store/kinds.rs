//! What a task is to do. The texts in the table are the old broker's where it had such a task.

/// What a task is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TaskKind {
    /// Make bucket, user, key.
    Provision,
    /// Remove them.
    Delete,
    /// Look once more, some time after a delete, that nothing of that name came up behind it.
    Sweep,
    /// Make the bucket what another plan promises.
    ChangePlans,
    /// Make another access key; the one before works on for a while.
    RotateCredentials,
    /// Remove the access key before the present one.
    RemovePreviousKey,
    /// Remove access keys that the row does not name, which a run that went wrong may have left.
    RemoveUnknownKeys,
    /// Write the tags of bucket and user anew.
    Tag,
    /// Look whether an instance that waits to be claimed can be used.
    Check,
    /// Tell the platform's listener how a provision ended.
    NotifyCreateService,
    /// Tell it that a binding was made.
    NotifyCreateBinding,
    /// Bring user policy and row in line with AWS.
    ResyncFromProvider,
    /// The same, for an instance that the old broker saw being made.
    ResyncUntilAvailable,
    /// The same, after the old broker had made it.
    PerformPostProvision,
    /// The old broker's, of databases.
    ChangeProviders,
    /// The old broker's, of databases.
    RestoreDatabase,
    /// Anything that this version does not know.
    Unknown(String),
}

/// Every kind that has a text of its own.
#[rustfmt::skip]
const TEXTS: [(TaskKind, &str); 16] = [
    (TaskKind::Provision,            "provision"),
    (TaskKind::Delete,               "delete"),
    (TaskKind::Sweep,                "sweep"),
    (TaskKind::ChangePlans,          "change-plans"),
    (TaskKind::RotateCredentials,    "rotate-credentials"),
    (TaskKind::RemovePreviousKey,    "remove-previous-key"),
    (TaskKind::RemoveUnknownKeys,    "remove-unknown-keys"),
    (TaskKind::Tag,                  "tag"),
    (TaskKind::Check,                "check"),
    (TaskKind::NotifyCreateService,  "notify-create-service-webhook"),
    (TaskKind::NotifyCreateBinding,  "notify-create-binding-webhook"),
    (TaskKind::ResyncFromProvider,   "resync-from-provider"),
    (TaskKind::ResyncUntilAvailable, "resync-until-available"),
    (TaskKind::PerformPostProvision, "perform-post-provision"),
    (TaskKind::ChangeProviders,      "change-providers"),
    (TaskKind::RestoreDatabase,      "restore-database"),
];

/// The kinds that call a webhook and nothing else.
pub(super) const NOTICES: [TaskKind; 2] = [TaskKind::NotifyCreateService, TaskKind::NotifyCreateBinding];

impl TaskKind {
    /// Whether it calls a webhook and nothing else.
    pub(crate) fn is_notice(&self) -> bool {
        NOTICES.contains(self)
    }

    /// The text in the table.
    pub(crate) fn as_str(&self) -> &str {
        if let TaskKind::Unknown(text) = self {
            return text;
        }
        TEXTS.iter().find(|(kind, _)| kind == self).map_or("", |(_, text)| text)
    }

    /// The same for metrics: one word for all that is not known, whatever stands in the table.
    pub(crate) fn label(&self) -> &str {
        if let TaskKind::Unknown(_) = self { "unknown" } else { self.as_str() }
    }

    /// The kind that a text in the table means.
    pub(super) fn parse(text: String) -> TaskKind {
        let known = TEXTS.iter().find(|(_, it)| *it == text).map(|(kind, _)| kind.clone());
        known.unwrap_or(TaskKind::Unknown(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_as_it_is_written() {
        for (kind, text) in TEXTS {
            assert_eq!(TaskKind::parse(text.to_owned()), kind);
            assert_eq!(kind.as_str(), text);
            assert!(!text.is_empty());
        }
        assert_eq!(TaskKind::parse("x".to_owned()).as_str(), "x");
    }
}
