//! What an answer says that cures the call it refused: the clock is wrong, the key is old, the bucket is
//! elsewhere.
//!
//! Not here: sending again after a pause (`retry`), where keys come from (`credentials`).
//!
//! Invariants
//! - Each cure is tried once for a call. What was learned holds for the calls that follow.
//! - No answer leads away from a custom endpoint, nor to a host that is not S3's own in our partition, nor
//!   from TLS to plain HTTP.
//! - CreateBucket stays in the configured region, and a tenant's key is never replaced.
//!
//! Sources: S3 User Guide, "Request redirection and the REST API"; botocore's `S3RegionRedirector`; IAM User
//! Guide, "Troubleshoot Signature Version 4 for API requests" (clock skew).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use url::Url;

use super::call::Call;
use super::credentials::Credentials;
use super::endpoints::{self, Endpoint};
use super::error::Class;
use super::send::Failure;
use super::xml::Element;
use super::{Aws, Caller, Signer};

/// A difference of clocks that AWS does not mind, in seconds: signed URLs are good for 300.
const CLOCK_TOLERANCE_S: i64 = 120;
/// How many buckets in other regions are remembered.
const BUCKETS_MAX: usize = 1_000;

/// What a refusal says beside its error.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hints {
    /// The time in our signature.
    signed_at: Timestamp,
    /// AWS' clock.
    date: Option<Timestamp>,
    /// The bucket's region.
    region: Option<String>,
    /// Where to ask this once.
    location: Option<String>,
}

impl Hints {
    /// Reads the headers and the body of a refusal.
    pub(super) fn read<'h>(
        signed_at: Timestamp,
        status: u16,
        header: impl Fn(&'static str) -> Option<&'h str>,
        root: Option<&Element>,
    ) -> Hints {
        let misplaced = matches!(status, 301 | 302 | 307 | 400);
        let region = header("x-amz-bucket-region").or_else(|| root?.find_text(&["Region"]));
        Hints {
            signed_at,
            date: header("date").and_then(|it| rfc2822::parse(it).ok()).map(|it| it.timestamp()),
            region: region.filter(|_| misplaced).map(str::to_owned),
            location: header("location").filter(|_| status == 307).map(str::to_owned),
        }
    }
}

/// Which cures a call has had.
#[derive(Default)]
pub(super) struct Cures {
    /// The clock was set right.
    clock: bool,
    /// Other credentials were found.
    key: bool,
    /// The call was sent elsewhere.
    place: bool,
}

impl Caller<'_> {
    /// Takes a hint; whether the call is worth sending again at once.
    pub(super) fn cure(
        &self,
        call: &mut Cow<'_, Call<'_>>,
        key: Option<&Credentials>,
        failure: &Failure,
        cures: &mut Cures,
        deadline: Instant,
    ) -> bool {
        if failure.error.class() == Class::Credentials {
            if !cures.clock && self.aws.clock.correct(&failure.hints) {
                cures.clock = true;
                return true;
            }
            if let (Signer::Broker, Some(key), false) = (self.signer, key, cures.key) {
                cures.key = true;
                return self.aws.keyring.replace(key, self, deadline);
            }
        }
        if cures.place {
            return false; // else a second answer would be remembered that nobody followed
        }
        let Some(moved) = self.aws.redirect(call, &failure.hints) else {
            return false;
        };
        cures.place = true;
        *call = Cow::Owned(moved);
        true
    }
}

/// The time here.
fn local_time() -> Timestamp {
    Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// AWS' clock, as far as we know it.
#[derive(Default)]
pub(super) struct Clock {
    /// How far it is ahead of ours, in seconds.
    ahead_s: AtomicI64,
}

impl Clock {
    /// The time there.
    pub(super) fn now(&self) -> Timestamp {
        let ours = local_time();
        ours.checked_add(SignedDuration::from_secs(self.ahead_s.load(Relaxed))).unwrap_or(ours)
    }

    /// Compares the time that was signed with that of the answer; whether they were too far apart.
    fn correct(&self, hints: &Hints) -> bool {
        let apart_s = |date: Timestamp, other: Timestamp| date.as_second().saturating_sub(other.as_second());
        let Some(date) = hints.date.filter(|it| apart_s(*it, hints.signed_at).abs() > CLOCK_TOLERANCE_S)
        else {
            return false;
        };
        let ahead_s = apart_s(date, local_time());
        let before_s = self.ahead_s.swap(ahead_s, Relaxed);
        if ahead_s.saturating_sub(before_s).abs() > CLOCK_TOLERANCE_S {
            // else another thread has just learned the same
            log::warn!("our clock is wrong, calls are signed with AWS' time: difference_s={ahead_s}");
        }
        true
    }
}

/// Buckets that are not in the configured region. Forgetting one costs a call.
#[derive(Default)]
pub(super) struct Regions(Mutex<HashMap<String, String>>);

impl Regions {
    /// The map. A panic elsewhere cannot leave it half changed.
    fn map(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a bucket, after forgetting all when there are too many.
    fn remember(&self, bucket: &str, region: &str) {
        let mut map = self.map();
        if map.len() >= BUCKETS_MAX {
            map.clear();
        }
        map.insert(bucket.to_owned(), region.to_owned());
    }
}

impl Aws {
    /// The call as it must be sent to its bucket's region, if that is known to be another.
    pub(super) fn address<'c, 'd>(&self, call: &'c Call<'d>) -> Cow<'c, Call<'d>> {
        let known = call.bucket.as_ref().and_then(|bucket| self.regions.map().get(bucket).cloned());
        let moved = known.and_then(|region| self.move_to(call, &region));
        moved.map_or(Cow::Borrowed(call), Cow::Owned)
    }

    /// The call as the answer wants it; `None` when it names no place, or none that may be trusted.
    fn redirect<'d>(&self, call: &Call<'d>, hints: &Hints) -> Option<Call<'d>> {
        let bucket = call.bucket.as_deref()?;
        let region = hints.region.as_deref().filter(|it| self.endpoints.has_region(it));
        let mut moved = self.move_to(call, region.unwrap_or(&call.region))?;
        if let Some(host) = hints.location.as_deref().and_then(|it| self.temporary_host(call, it)) {
            moved.url.set_host(Some(&host)).ok()?;
        }
        if moved.region != call.region {
            log::info!("bucket is in another region: bucket={bucket} region={}", moved.region);
            self.regions.remember(bucket, &moved.region);
        }
        (moved.url != call.url || moved.region != call.region).then_some(moved)
    }

    /// The call in another region: another host of AWS, or the same custom endpoint, and another signature.
    fn move_to<'d>(&self, call: &Call<'d>, region: &str) -> Option<Call<'d>> {
        let mut moved = call.clone();
        if !self.endpoints.s3.custom {
            let host = format!("{}{}", self.before_s3(call)?, self.s3_of(region).location());
            moved.url.set_host(Some(&host)).ok()?;
        }
        moved.region = Cow::Owned(region.to_owned());
        Some(moved)
    }

    /// AWS' own S3 in a region.
    fn s3_of(&self, region: &str) -> Endpoint {
        Endpoint::of_s3(self.endpoints.partition, region)
    }

    /// What stands in the call's host before S3's own: the bucket and a dot, or nothing.
    fn before_s3<'c>(&self, call: &'c Call<'_>) -> Option<&'c str> {
        call.url.host_str()?.strip_suffix(self.s3_of(&call.region).location())
    }

    /// The host of a `Location`, if it is one of S3 in this partition, for this bucket, over TLS.
    fn temporary_host(&self, call: &Call<'_>, location: &str) -> Option<String> {
        let url = Url::parse(location).ok().filter(|it| it.scheme() == "https" && it.port().is_none())?;
        let host = url.host_str().filter(|_| !self.endpoints.s3.custom)?;
        let name = host.strip_prefix(self.before_s3(call)?)?;
        let suffix = endpoints::dns_suffix(self.endpoints.partition);
        let place = name.strip_suffix(suffix)?.strip_suffix('.')?.strip_prefix("s3")?;
        let region = place.strip_prefix(['.', '-']);
        (place.is_empty() || region.is_some_and(|it| self.endpoints.has_region(it))).then(|| host.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::stub::{self, Reply, Stub, call};
    use super::super::{Settings, xml};
    use super::*;
    use crate::config::KeySources;
    use crate::tls::CertificateDer;

    const GOOD: Reply = Reply::Answer(200, "<LocationConstraint>EU</LocationConstraint>");
    const THEN: &str = "Date: Wed, 21 Oct 2015 07:28:00 GMT";
    const SKEWED: &str = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
    const EXPIRED: &str = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";

    #[test]
    fn a_wrong_clock_is_set_right_once() {
        let cases: [(&'static [Reply], bool, usize); 5] = [
            (&[Reply::With(403, THEN, SKEWED), GOOD], true, 2),
            (&[Reply::With(403, THEN, EXPIRED), GOOD], true, 2),
            (
                &[
                    Reply::With(403, THEN, SKEWED),
                    Reply::With(403, "Date: Tue, 21 Oct 2025 07:28:00 GMT", SKEWED),
                    GOOD,
                ],
                false,
                2,
            ),
            (&[Reply::Answer(403, SKEWED), GOOD], false, 1),
            (&[Reply::With(403, THEN, "<Error><Code>AccessDenied</Code></Error>"), GOOD], false, 1),
        ];
        for (row, (script, good, requests)) in cases.into_iter().enumerate() {
            let stub = Stub::start(script);
            let result = call(stub.port, 9, |caller| caller.get_bucket_location("b"));
            assert_eq!((result.is_ok(), stub.requests().len()), (good, requests), "row {row}: {result:?}");
            if requests == 2 {
                assert!(stub.requests()[1].contains("X-Amz-Date=20151021T0728"), "{:?}", stub.requests()[1]);
            }
        }
    }

    #[test]
    fn a_clock_that_is_nearly_right_is_left_alone() {
        for (wrong_s, requests) in [(0, 1), (-100, 1), (100, 1), (140, 2), (-140, 2)] {
            let date = Timestamp::now() + SignedDuration::from_secs(wrong_s);
            let date = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&date).unwrap();
            let refusal = Reply::With(403, format!("Date: {date}").leak(), SKEWED);
            let stub = Stub::start(vec![refusal, GOOD].leak());
            call(stub.port, 9, |caller| caller.get_bucket_location("b").unwrap_or_default());
            assert_eq!(stub.requests().len(), requests, "{wrong_s}");
        }
    }

    #[test]
    fn the_time_that_was_learned_is_used_for_iam_too() {
        const LATE: &str = "<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code><Message>Signature expired: a is \
            now earlier than b</Message></Error></ErrorResponse>";
        const DONE: Reply = Reply::Answer(200, "<DeleteUserResponse/>");
        let stub = Stub::start(&[Reply::With(403, THEN, LATE), DONE]);
        call(stub.port, 9, |caller| {
            caller.delete_user("u").unwrap();
            caller.delete_user("u").unwrap();
        });
        let requests = stub.requests();
        assert_eq!(requests.len(), 3);
        assert!(requests[1..].iter().all(|it| it.contains("x-amz-date: 20151021T0728")), "{requests:?}");
    }

    #[test]
    fn a_bucket_is_followed_to_its_region_and_found_there_at_once_later() {
        const BODY: &str =
            "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-north-1</Region></Error>";
        const MOVED: &str = "x-amz-bucket-region: eu-north-1";
        for refusal in [
            Reply::With(301, MOVED, ""),
            Reply::With(307, MOVED, ""),
            Reply::With(400, MOVED, ""),
            Reply::Answer(400, BODY),
        ] {
            let stub = Stub::start(vec![refusal, GOOD].leak());
            call(stub.port, 9, |caller| {
                caller.get_bucket_location("b").unwrap();
                caller.delete_bucket("b").unwrap_or_default();
                caller.get_bucket_location("other").unwrap();
                caller.owns_bucket("b").unwrap_or_default();
            });
            let scopes: Vec<bool> =
                stub.requests().iter().map(|it| it.contains("%2Feu-north-1%2Fs3%2Faws4_request")).collect();
            assert_eq!(scopes, [false, true, true, false, false]);
        }
    }

    #[test]
    fn nobody_is_sent_to_and_fro() {
        const MOVED: &[Reply] = &[
            Reply::With(301, "x-amz-bucket-region: eu-north-1", ""),
            Reply::With(301, "x-amz-bucket-region: eu-south-1", ""),
        ];
        let stub = Stub::start(MOVED);
        call(stub.port, 9, |caller| {
            assert!(caller.get_bucket_location("b").is_err());
            assert_eq!(stub.requests().len(), 2);
            caller.delete_bucket("b").unwrap_or_default(); // where the first answer said, the second was not followed
            assert!(stub.requests()[2].contains("%2Feu-north-1%2Fs3%2F"), "{:?}", stub.requests()[2]);
        });
        for (header, status) in [
            ("x-amz-bucket-region: ../evil", 301),
            ("x-amz-bucket-region: eu-west-1", 301),
            ("x-amz-bucket-region: eu-north-1", 403),
            ("Location: https://b.s3.eu-north-1.amazonaws.com/", 307),
        ] {
            let stub = Stub::start(vec![Reply::With(status, header, "")].leak());
            assert!(call(stub.port, 9, |caller| caller.get_bucket_location("b")).is_err());
            assert_eq!(stub.requests().len(), 1, "{status} {header}");
        }
    }

    #[test]
    fn a_new_bucket_is_made_in_the_configured_region_or_not_at_all() {
        let stub = Stub::start(&[Reply::With(301, "x-amz-bucket-region: eu-north-1", "")]);
        assert!(call(stub.port, 9, |caller| caller.create_bucket("b")).is_err());
        assert_eq!(stub.requests().len(), 1);
    }

    #[test]
    fn on_aws_the_host_follows_and_never_leaves_s3() {
        let aws = Aws::new(Settings {
            region: "us-west-2".into(),
            endpoint_url: None,
            endpoint_url_s3: None,
            endpoint_url_iam: None,
            endpoint_url_sts: None,
            roots: vec![CertificateDer::from(vec![0])],
            call_deadline: Duration::from_secs(1),
            max_idle_per_host: 1,
            key_sources: KeySources::default(),
        })
        .unwrap();
        let region = |region: &'static str| (301, Some(region), None);
        let location = |location: &'static str| (307, None, Some(location));
        #[rustfmt::skip]
        let cases = [
            ("b", region("eu-central-1"), Some("https://b.s3.eu-central-1.amazonaws.com/")),
            ("b.c", region("eu-central-1"), Some("https://s3.eu-central-1.amazonaws.com/b.c/")),
            ("b", region("us-west-2"), None),
            ("b", region("cn-north-1"), None),
            ("b", region("us-gov-west-1"), None),
            ("b", region("x.evil.test/"), None),
            ("b", (403, Some("eu-central-1"), None), None),
            ("b", location("https://b.s3-eu-west-1.amazonaws.com/?x"), Some("https://b.s3-eu-west-1.amazonaws.com/")),
            ("b", location("https://b.s3.amazonaws.com/"), Some("https://b.s3.amazonaws.com/")),
            ("b", (307, Some("eu-west-1"), Some("https://b.s3-w.eu.evil.test/")), Some("https://b.s3.eu-west-1.amazonaws.com/")),
            ("b", location("https://b.s3.us-west-2.amazonaws.com/"), None),
            ("b", location("http://b.s3-eu-west-1.amazonaws.com/"), None),
            ("b", location("https://b.s3.eu-west-1.amazonaws.com:444/"), None),
            ("b", location("https://other.s3.eu-west-1.amazonaws.com/"), None),
            ("b", location("https://b.s3.eu-west-1.amazonaws.com.evil.test/"), None),
            ("b", location("https://b.s3.eu-west-1.evil-amazonaws.com/"), None),
            ("b", location("https://b.s3x.eu-west-1.amazonaws.com/"), None),
            ("b", location("https://b.s3.x.eu-west-1.amazonaws.com/"), None),
            ("b", location("https://b.s3.cn-north-1.amazonaws.com.cn/"), None),
            ("b", location("/relative"), None),
            ("b", (301, None, Some("https://b.s3-eu-west-1.amazonaws.com/")), None),
        ];
        for (bucket, (status, region, location), expected) in cases {
            aws.regions.map().clear();
            let permit = stub::Calls(0.into());
            let caller = aws.caller(&permit);
            let call = caller.about_bucket("GetBucketLocation", rusty_s3::Method::Get, bucket).unwrap();
            let header = |name: &'static str| match name {
                "x-amz-bucket-region" => region,
                "location" => location,
                _ => None,
            };
            let moved = aws.redirect(&call, &Hints::read(Timestamp::UNIX_EPOCH, status, header, None));
            let about = format!("{bucket} {status} {region:?} {location:?}");
            assert_eq!(moved.as_ref().map(|it| it.url.as_str()), expected, "{about}");
            let later = aws.address(&call);
            assert_eq!(later.region != "us-west-2", region.is_some() && expected.is_some(), "{about}");
        }
    }

    #[test]
    fn too_many_buckets_are_forgotten() {
        let regions = Regions::default();
        for number in 0..=BUCKETS_MAX {
            regions.remember(&number.to_string(), "eu-west-1");
        }
        assert_eq!(regions.map().len(), 1);
    }

    #[test]
    fn hints_are_read_from_what_came() {
        let root = xml::read(b"<Error><Code>X</Code><Region>eu-west-1</Region></Error>").unwrap();
        let date = |name| (name == "date").then_some("Wed, 21 Oct 2015 07:28:00 GMT");
        let hints = Hints::read(Timestamp::UNIX_EPOCH, 400, date, Some(&root));
        assert_eq!(hints.region.as_deref(), Some("eu-west-1"));
        assert_eq!(hints.date, "2015-10-21T07:28:00Z".parse().ok());
        assert_eq!(Hints::read(Timestamp::UNIX_EPOCH, 404, |_| None, Some(&root)), Hints::default());
        assert_eq!(Hints::read(Timestamp::UNIX_EPOCH, 307, |_| Some("nonsense"), None).date, None);
    }
}
