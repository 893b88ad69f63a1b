//! IAM: the users of tenants, their inline policies and access keys.
//!
//! Not here: when which call is made (`steps`), the policies' text (`policy`). Managed policies are only
//! ever detached and deleted: the broker before this one made them.
//!
//! Invariants
//! - Every call about a key names its user; without it IAM would act on the broker's own keys.
//! - What is deleted and not there counts as deleted; a list of something that is not there is empty.
//! - CreateAccessKey is sent once: its answer holds the secret, and a second answer would hold another.
//!
//! Sources: IAM API Reference, the operations named; IAM User Guide, "Changes that I make are not always immediately visible".

use std::time::SystemTime;

use super::error::none_if;
use super::query::{Form, Service};
use super::xml::{self, Element};
use super::{AwsError, Caller};
use crate::config::Secret;

/// The code for "no such user, key or policy".
const GONE: &[&str] = &["NoSuchEntity"];
/// How many users or policies of the account a page may have; IAM may still give fewer.
const ITEMS_MAX: &str = "1000";

/// An IAM user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// The ARN; its form is the store's affair.
    pub(crate) arn: String,
    /// When it was made, where the store says so.
    pub(crate) created: Option<SystemTime>,
    /// Its tags: in the answer of GetUser only.
    pub(crate) tags: Vec<(String, String)>,
}

impl User {
    /// Reads `<User>` below a result.
    fn read(operation: &'static str, result: &Element) -> Result<User, AwsError> {
        let arn = result.find_text(&["User", "Arn"]).filter(|arn| !arn.is_empty());
        let arn = arn.ok_or(AwsError::Malformed { operation, what: "a user without ARN" })?.to_owned();
        let created = xml::read_time(result.find_text(&["User", "CreateDate"]));
        let tags = xml::read_tags(result.find(&["User", "Tags"]), "member");
        Ok(User { arn, created, tags })
    }
}

/// A new access key, as it is seen this once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AccessKey {
    /// Its id.
    pub(crate) id: String,
    /// Its secret.
    pub(crate) secret: Secret,
}

/// A version of a managed policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PolicyVersion {
    /// Its id, `v1` and so on.
    pub(crate) id: String,
    /// Whether it is in force; then it goes only with the policy.
    pub(crate) is_default: bool,
    /// When it was made, where the store says so.
    pub(crate) created: Option<SystemTime>,
}

/// A text that says something.
fn owned(text: Option<&str>) -> Option<String> {
    text.filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Adds the members of a list of tags.
fn with_tags(mut form: Form, tags: &[(String, String)]) -> Form {
    for (number, (key, value)) in (1..).zip(tags) {
        form = form.with(format!("Tags.member.{number}.Key"), key.as_str());
        form = form.with(format!("Tags.member.{number}.Value"), value.as_str());
    }
    form
}

impl Caller<'_> {
    /// IAM as these calls need it.
    fn iam(&self) -> Service<'_> {
        Service { name: "iam", version: "2010-05-08", endpoint: &self.aws.endpoints.iam }
    }

    /// Sends an IAM call whose answer holds nothing, but must be IAM's.
    fn tell_iam(&self, form: &Form) -> Result<(), AwsError> {
        let (root, operation) = (self.submit(&self.iam(), form)?.root()?, form.operation());
        match root.name.strip_prefix(operation) {
            Some("Response") => Ok(()),
            _ => Err(AwsError::Malformed { operation, what: "another answer than IAM's" }),
        }
    }

    /// Sends an IAM call that is content when there is nothing to act on.
    fn remove_in_iam(&self, operation: &'static str, parameters: &[(&str, &str)]) -> Result<(), AwsError> {
        none_if(self.tell_iam(&Form::new(operation, parameters)), GONE).map(drop)
    }

    /// Makes a user; `None` when there is one of that name, whoever made it.
    pub(crate) fn create_user(
        &self,
        name: &str,
        path: Option<&str>,
        boundary: Option<&str>,
        tags: &[(String, String)],
    ) -> Result<Option<User>, AwsError> {
        let operation = "CreateUser";
        let mut form = Form::new(operation, &[("UserName", name)]);
        if let Some(path) = path {
            form = form.with("Path", path);
        }
        if let Some(boundary) = boundary {
            form = form.with("PermissionsBoundary", boundary);
        }
        form = with_tags(form, tags);
        let made = none_if(self.ask(&self.iam(), &form), &["EntityAlreadyExists"])?;
        made.map(|result| User::read(operation, &result)).transpose()
    }

    /// Looks a user up.
    pub(crate) fn get_user(&self, name: &str) -> Result<Option<User>, AwsError> {
        let operation = "GetUser";
        let form = Form::new(operation, &[("UserName", name)]);
        let found = none_if(self.ask(&self.iam(), &form), GONE)?;
        found.map(|result| User::read(operation, &result)).transpose()
    }

    /// The names of all users of the account.
    pub(crate) fn list_users(&self) -> Result<Vec<String>, AwsError> {
        let form = Form::new("ListUsers", &[("MaxItems", ITEMS_MAX)]);
        self.list(&self.iam(), &form, "Users", |member| owned(member.find_text(&["UserName"])))
    }

    /// The names of all managed policies of the account.
    pub(crate) fn list_policies(&self) -> Result<Vec<String>, AwsError> {
        let form = Form::new("ListPolicies", &[("Scope", "Local"), ("MaxItems", ITEMS_MAX)]);
        self.list(&self.iam(), &form, "Policies", |member| owned(member.find_text(&["PolicyName"])))
    }

    /// Adds tags to a user, or gives those that it has another value.
    pub(crate) fn tag_user(&self, name: &str, tags: &[(String, String)]) -> Result<(), AwsError> {
        self.tell_iam(&with_tags(Form::new("TagUser", &[("UserName", name)]), tags))
    }

    /// Takes tags off a user, by their keys.
    pub(crate) fn untag_user(&self, name: &str, keys: &[&str]) -> Result<(), AwsError> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut form = Form::new("UntagUser", &[("UserName", name)]);
        for (number, key) in (1..).zip(keys) {
            form = form.with(format!("TagKeys.member.{number}"), *key);
        }
        self.tell_iam(&form)
    }

    /// Deletes a user that has no keys and policies any more.
    pub(crate) fn delete_user(&self, name: &str) -> Result<(), AwsError> {
        self.remove_in_iam("DeleteUser", &[("UserName", name)])
    }

    /// Sets one inline policy of a user, replacing the one of the same name.
    pub(crate) fn put_user_policy(
        &self,
        user: &str,
        policy_name: &str,
        document: &str,
    ) -> Result<(), AwsError> {
        let parameters = [("UserName", user), ("PolicyName", policy_name), ("PolicyDocument", document)];
        self.tell_iam(&Form::new("PutUserPolicy", &parameters))
    }

    /// The names of a user's inline policies.
    pub(crate) fn list_user_policies(&self, user: &str) -> Result<Vec<String>, AwsError> {
        let form = Form::new("ListUserPolicies", &[("UserName", user)]);
        self.list(&self.iam(), &form, "PolicyNames", |member| owned(Some(&member.text)))
    }

    /// Deletes one inline policy of a user.
    pub(crate) fn delete_user_policy(&self, user: &str, policy_name: &str) -> Result<(), AwsError> {
        self.remove_in_iam("DeleteUserPolicy", &[("UserName", user), ("PolicyName", policy_name)])
    }

    /// The ARNs of the managed policies attached to a user.
    pub(crate) fn list_attached_user_policies(&self, user: &str) -> Result<Vec<String>, AwsError> {
        let form = Form::new("ListAttachedUserPolicies", &[("UserName", user)]);
        self.list(&self.iam(), &form, "AttachedPolicies", |member| owned(member.find_text(&["PolicyArn"])))
    }

    /// Takes a managed policy off a user.
    pub(crate) fn detach_user_policy(&self, user: &str, policy_arn: &str) -> Result<(), AwsError> {
        self.remove_in_iam("DetachUserPolicy", &[("UserName", user), ("PolicyArn", policy_arn)])
    }

    /// The versions of a managed policy.
    pub(crate) fn list_policy_versions(&self, policy_arn: &str) -> Result<Vec<PolicyVersion>, AwsError> {
        let form = Form::new("ListPolicyVersions", &[("PolicyArn", policy_arn)]);
        self.list(&self.iam(), &form, "Versions", |member| {
            let id = owned(member.find_text(&["VersionId"]))?;
            let created = xml::read_time(member.find_text(&["CreateDate"]));
            Some(PolicyVersion { id, is_default: member.is_true(&["IsDefaultVersion"]), created })
        })
    }

    /// Deletes a version of a managed policy that is not the default one.
    pub(crate) fn delete_policy_version(&self, policy_arn: &str, version: &str) -> Result<(), AwsError> {
        self.remove_in_iam("DeletePolicyVersion", &[("PolicyArn", policy_arn), ("VersionId", version)])
    }

    /// Deletes a managed policy that is attached to nobody and has one version left.
    pub(crate) fn delete_policy(&self, policy_arn: &str) -> Result<(), AwsError> {
        self.remove_in_iam("DeletePolicy", &[("PolicyArn", policy_arn)])
    }

    /// Makes an access key. When no answer comes, a key may exist whose secret nobody knows: list the keys
    /// and delete the unknown one.
    pub(crate) fn create_access_key(&self, user: &str) -> Result<AccessKey, AwsError> {
        let operation = "CreateAccessKey";
        let form = Form::new(operation, &[("UserName", user)]).only_once();
        let result = self.ask(&self.iam(), &form)?;
        let field = |name| owned(result.find_text(&["AccessKey", name]));
        match (field("AccessKeyId"), field("SecretAccessKey")) {
            (Some(id), Some(secret)) => Ok(AccessKey { id, secret: Secret::new(secret) }),
            _ => Err(AwsError::Malformed { operation, what: "a key without id or secret" }),
        }
    }

    /// The ids of a user's access keys.
    pub(crate) fn list_access_keys(&self, user: &str) -> Result<Vec<String>, AwsError> {
        Ok(self.list_keys(user)?.into_iter().map(|(id, _)| id).collect())
    }

    /// The ids of those of a user's access keys that nobody has switched off.
    pub(crate) fn list_active_access_keys(&self, user: &str) -> Result<Vec<String>, AwsError> {
        Ok(self.list_keys(user)?.into_iter().filter(|(_, is_active)| *is_active).map(|(id, _)| id).collect())
    }

    /// A user's access keys, and whether each can be used.
    fn list_keys(&self, user: &str) -> Result<Vec<(String, bool)>, AwsError> {
        let form = Form::new("ListAccessKeys", &[("UserName", user)]);
        self.list(&self.iam(), &form, "AccessKeyMetadata", |member| {
            let is_active = member.find_text(&["Status"]) != Some("Inactive");
            owned(member.find_text(&["AccessKeyId"])).map(|id| (id, is_active))
        })
    }

    /// Deletes an access key.
    pub(crate) fn delete_access_key(&self, user: &str, id: &str) -> Result<(), AwsError> {
        self.remove_in_iam("DeleteAccessKey", &[("UserName", user), ("AccessKeyId", id)])
    }
}

#[cfg(test)]
mod tests {
    use super::super::stub::{Reply, Stub, call};
    use super::*;

    const MADE: Reply = Reply::Answer(
        200,
        "<CreateUserResponse xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\"><CreateUserResult><User>\
         <Path>/osb/</Path><Arn>arn:aws:iam::111122223333:user/osb/u</Arn></User></CreateUserResult>\
         </CreateUserResponse>",
    );
    const EXISTS: Reply =
        Reply::Answer(409, "<ErrorResponse><Error><Code>EntityAlreadyExists</Code></Error></ErrorResponse>");
    const GONE: Reply =
        Reply::Answer(404, "<ErrorResponse><Error><Code>NoSuchEntity</Code></Error></ErrorResponse>");

    #[test]
    fn a_user_is_made_with_path_boundary_and_tags() {
        let tags = [("k/1".to_owned(), String::new()), ("k2".to_owned(), "v w".to_owned())];
        let make = |caller: Caller<'_>| caller.create_user("u", Some("/osb/"), Some("arn:b"), &tags);
        let stub = Stub::start(&[MADE, EXISTS]);
        let user = call(stub.port, 9, make).unwrap().unwrap();
        assert_eq!(user.arn, "arn:aws:iam::111122223333:user/osb/u");
        assert_eq!(call(stub.port, 9, make), Ok(None));
        let form = "UserName=u&Path=%2Fosb%2F&PermissionsBoundary=arn%3Ab&Tags.member.1.Key=k%2F1\
            &Tags.member.1.Value=&Tags.member.2.Key=k2&Tags.member.2.Value=v%20w";
        assert!(stub.requests().remove(0).ends_with(form));
    }

    #[test]
    fn a_user_is_read_with_age_and_tags() {
        const FOUND: Reply = Reply::Answer(
            200,
            "<GetUserResponse><GetUserResult><User><Arn>arn:u</Arn><CreateDate>1970-01-01T01:00:00Z</CreateDate>\
             <Tags><member><Key>k</Key><Value>v</Value></member><member><Key>e</Key><Value/></member></Tags>\
             </User></GetUserResult></GetUserResponse>",
        );
        let user = call(Stub::start(&[FOUND]).port, 9, |caller| caller.get_user("u")).unwrap().unwrap();
        assert_eq!(user.created, Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(3_600)));
        assert_eq!(user.tags, [("k".to_owned(), "v".to_owned()), ("e".to_owned(), String::new())]);
    }

    #[test]
    fn a_user_is_tagged_and_untagged() {
        const TAGGED: Reply = Reply::Answer(200, "<TagUserResponse><ResponseMetadata/></TagUserResponse>");
        const UNTAGGED: Reply = Reply::Answer(200, "<UntagUserResponse/>");
        let stub = Stub::start(&[TAGGED, UNTAGGED]);
        let tags = [("k".to_owned(), "v".to_owned())];
        call(stub.port, 9, |caller| caller.tag_user("u", &tags)).unwrap();
        call(stub.port, 9, |caller| caller.untag_user("u", &["a", "b"])).unwrap();
        call(stub.port, 9, |caller| caller.untag_user("u", &[])).unwrap(); // IAM would refuse an empty list
        let requests = stub.requests();
        assert_eq!(requests.len(), 2);
        assert!(requests[0].ends_with("UserName=u&Tags.member.1.Key=k&Tags.member.1.Value=v"));
        assert!(requests[1].ends_with("UserName=u&TagKeys.member.1=a&TagKeys.member.2=b"));
    }

    #[test]
    fn a_key_that_was_switched_off_is_a_key_but_none_to_use() {
        const KEYS: Reply = Reply::Answer(
            200,
            "<ListAccessKeysResponse><ListAccessKeysResult><AccessKeyMetadata><member><AccessKeyId>A1</AccessKeyId>\
             <Status>Inactive</Status></member><member><AccessKeyId>A2</AccessKeyId><Status>Active</Status></member>\
             <member><AccessKeyId>A3</AccessKeyId></member></AccessKeyMetadata></ListAccessKeysResult>\
             </ListAccessKeysResponse>",
        );
        call(Stub::start(&[KEYS]).port, 9, |caller| {
            assert_eq!(caller.list_access_keys("u").unwrap(), ["A1", "A2", "A3"]);
            assert_eq!(caller.list_active_access_keys("u").unwrap(), ["A2", "A3"]);
        });
    }

    #[test]
    fn a_policy_s_versions_tell_their_age() {
        const VERSIONS: Reply = Reply::Answer(
            200,
            "<ListPolicyVersionsResponse><ListPolicyVersionsResult><Versions><member><VersionId>v1</VersionId>\
             <IsDefaultVersion>true</IsDefaultVersion><CreateDate>1970-01-01T01:00:00Z</CreateDate></member>\
             <member><VersionId>v2</VersionId></member></Versions></ListPolicyVersionsResult>\
             </ListPolicyVersionsResponse>",
        );
        let list = |caller: Caller<'_>| caller.list_policy_versions("arn").unwrap();
        let versions = call(Stub::start(&[VERSIONS]).port, 9, list);
        let made = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(3_600);
        assert_eq!([versions[0].created, versions[1].created], [Some(made), None]);
        assert!(versions[0].is_default && !versions[1].is_default);
    }

    #[test]
    fn what_is_not_there_is_already_deleted() {
        let stub = Stub::start(&[GONE]);
        call(stub.port, 99, |caller| {
            caller.delete_user("u").unwrap();
            caller.delete_user_policy("u", "p").unwrap();
            caller.detach_user_policy("u", "arn").unwrap();
            caller.delete_policy("arn").unwrap();
            caller.delete_policy_version("arn", "v1").unwrap();
            caller.delete_access_key("u", "AK").unwrap();
            assert_eq!(caller.get_user("u"), Ok(None));
            assert_eq!(caller.list_policy_versions("arn"), Ok(vec![]));
            assert_eq!(caller.list_attached_user_policies("u"), Ok(vec![]));
            assert_eq!(caller.list_access_keys("u"), Ok(vec![]));
            assert!(caller.put_user_policy("u", "p", "{}").is_err());
        });
        assert_eq!(stub.requests().len(), 11);
    }
}
