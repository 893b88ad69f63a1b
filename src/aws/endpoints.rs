//! Where the three services are reached, and for which region calls to them are signed.
//!
//! Not here: connections, and the path of a bucket or key below an endpoint (`s3`).
//!
//! Invariants
//! - Every base is `http` or `https` with a host, without user, query, fragment or final slash.
//! - A region that stands in a host name is made of lower-case letters, digits and `-`.
//!
//! Sources: botocore's `partitions.json` and endpoint rule sets; AWS SDKs Reference Guide, "Service-specific endpoints".

use std::fmt;

use url::Url;

/// A part of AWS with its own accounts, names and ARNs.
pub(super) struct Partition {
    /// The second field of every ARN in it.
    pub(super) name: &'static str,
    /// What its regions begin with; an empty text stands for all others.
    region_prefix: &'static str,
    /// What its host names end with.
    pub(super) dns_suffix: &'static str,
    /// The one host of IAM.
    iam_host: &'static str,
    /// The region that calls to that host are signed for.
    iam_region: &'static str,
}

/// All partitions. The first match counts, so the catch-all stands last.
#[rustfmt::skip]
const PARTITIONS: &[Partition] = &[
    Partition { name: "aws-cn",     region_prefix: "cn-",      dns_suffix: "amazonaws.com.cn",  iam_host: "iam.cn-north-1.amazonaws.com.cn",     iam_region: "cn-north-1" },
    Partition { name: "aws-us-gov", region_prefix: "us-gov-",  dns_suffix: "amazonaws.com",     iam_host: "iam.us-gov.amazonaws.com",            iam_region: "us-gov-west-1" },
    Partition { name: "aws-iso",    region_prefix: "us-iso-",  dns_suffix: "c2s.ic.gov",        iam_host: "iam.us-iso-east-1.c2s.ic.gov",        iam_region: "us-iso-east-1" },
    Partition { name: "aws-iso-b",  region_prefix: "us-isob-", dns_suffix: "sc2s.sgov.gov",     iam_host: "iam.us-isob-east-1.sc2s.sgov.gov",    iam_region: "us-isob-east-1" },
    Partition { name: "aws-iso-e",  region_prefix: "eu-isoe-", dns_suffix: "cloud.adc-e.uk",    iam_host: "iam.eu-isoe-west-1.cloud.adc-e.uk",   iam_region: "eu-isoe-west-1" },
    Partition { name: "aws-iso-f",  region_prefix: "us-isof-", dns_suffix: "csp.hci.ic.gov",    iam_host: "iam.us-isof-south-1.csp.hci.ic.gov",  iam_region: "us-isof-south-1" },
    Partition { name: "aws-eusc",   region_prefix: "eusc-",    dns_suffix: "amazonaws.eu",      iam_host: "iam.eusc-de-east-1.amazonaws.eu",     iam_region: "eusc-de-east-1" },
    AWS,
];

/// The partition that everybody means; unknown regions belong to it too.
const AWS: Partition = Partition {
    name: "aws",
    region_prefix: "",
    dns_suffix: "amazonaws.com",
    iam_host: "iam.amazonaws.com",
    iam_region: "us-east-1",
};

/// The partition of a region.
fn find_partition(region: &str) -> &'static Partition {
    PARTITIONS.iter().find(|it| region.starts_with(it.region_prefix)).unwrap_or(&AWS)
}

/// What the host names of a partition end with.
pub(super) fn dns_suffix(partition: &str) -> &'static str {
    PARTITIONS.iter().find(|it| it.name == partition).unwrap_or(&AWS).dns_suffix
}

/// Why the settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SettingsError {
    /// The region cannot be signed for or put in a host name.
    Region,
    /// A URL is not usable.
    Url {
        /// The variable that holds it.
        variable: &'static str,
        /// What is wrong with it. Never the URL: somebody may have put a password there.
        fault: &'static str,
    },
    /// An endpoint is https and there is no certificate to trust.
    NoRoots,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SettingsError::Region => f.write_str("is not the name of a region, such as us-west-2"),
            SettingsError::Url { fault, .. } => f.write_str(fault),
            SettingsError::NoRoots => {
                f.write_str("is not set, and the system has no CA certificates for the https endpoints")
            }
        }
    }
}

impl std::error::Error for SettingsError {}

impl SettingsError {
    /// The variable to change.
    pub(crate) fn variable(&self) -> &'static str {
        match self {
            SettingsError::Region => "AWS_REGION",
            SettingsError::Url { variable, .. } => variable,
            SettingsError::NoRoots => "AWS_CA_BUNDLE",
        }
    }
}

/// Where one service is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Scheme, host, port if unusual, path if any; no final slash.
    pub(super) base: String,
    /// The region to sign for.
    pub(super) region: String,
    /// Whether the operator chose it, as opposed to AWS' own.
    pub(super) custom: bool,
}

impl Endpoint {
    /// AWS' own S3 in a region.
    pub(super) fn of_s3(partition: &str, region: &str) -> Endpoint {
        Endpoint::built_in(&format!("s3.{region}.{}", dns_suffix(partition)), region)
    }

    /// AWS' own endpoint at `host`.
    fn built_in(host: &str, region: &str) -> Endpoint {
        Endpoint { base: format!("https://{host}"), region: region.to_owned(), custom: false }
    }

    /// The base without its scheme.
    pub(super) fn location(&self) -> &str {
        self.base.split_once("://").map_or(self.base.as_str(), |(_scheme, rest)| rest)
    }

    /// Whether calls go over the wire in the open.
    pub(super) fn is_plain_http(&self) -> bool {
        self.base.starts_with("http://")
    }
}

/// What was configured, unchecked: a URL for all services and one for each.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Chosen<'s> {
    /// `AWS_ENDPOINT_URL`.
    pub(super) all: Option<&'s str>,
    /// `AWS_ENDPOINT_URL_S3`.
    pub(super) s3: Option<&'s str>,
    /// `AWS_ENDPOINT_URL_IAM`.
    pub(super) iam: Option<&'s str>,
    /// `AWS_ENDPOINT_URL_STS`.
    pub(super) sts: Option<&'s str>,
}

/// The endpoints of all services for one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoints {
    /// The partition's name.
    pub(super) partition: &'static str,
    /// S3, for calls about buckets.
    pub(super) s3: Endpoint,
    /// IAM, one per partition.
    pub(super) iam: Endpoint,
    /// STS of the region.
    pub(super) sts: Endpoint,
}

impl Endpoints {
    /// Chooses for each service: its own URL, else the one for all, else AWS' own.
    pub(super) fn choose(region: &str, chosen: Chosen<'_>) -> Result<Endpoints, SettingsError> {
        let partition = find_partition(region);
        let suffix = partition.dns_suffix;
        let pick = |variable, own: Option<&str>, built_in: Endpoint| match (own, chosen.all) {
            (Some(url), _) => custom(variable, url, region),
            (None, Some(url)) => custom("AWS_ENDPOINT_URL", url, region),
            (None, None) => Ok(built_in),
        };
        let s3 = Endpoint::of_s3(partition.name, region);
        let iam = Endpoint::built_in(partition.iam_host, partition.iam_region);
        let sts = Endpoint::built_in(&format!("sts.{region}.{suffix}"), region);
        let endpoints = Endpoints {
            partition: partition.name,
            s3: pick("AWS_ENDPOINT_URL_S3", chosen.s3, s3)?,
            iam: pick("AWS_ENDPOINT_URL_IAM", chosen.iam, iam)?,
            sts: pick("AWS_ENDPOINT_URL_STS", chosen.sts, sts)?,
        };
        let on_aws = !(endpoints.s3.custom && endpoints.iam.custom && endpoints.sts.custom);
        if is_region(region, on_aws) { Ok(endpoints) } else { Err(SettingsError::Region) }
    }

    /// Whether `region` is one that these endpoints' S3 can be signed for, and reached in where it is AWS.
    pub(super) fn has_region(&self, region: &str) -> bool {
        let custom = self.s3.custom;
        is_region(region, !custom) && (custom || find_partition(region).name == self.partition)
    }

    /// Whether any call will need a certificate to be verified.
    pub(super) fn need_roots(&self) -> bool {
        [&self.s3, &self.iam, &self.sts].iter().any(|endpoint| !endpoint.is_plain_http())
    }
}

/// Whether `text` can be a region. Stores other than AWS name theirs more freely.
fn is_region(text: &str, on_aws: bool) -> bool {
    let fits = |it: char| match on_aws {
        true => it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-',
        false => it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.'),
    };
    (1..=63).contains(&text.len()) && text.chars().all(fits)
}

/// Checks a URL that the operator chose. It is signed for the configured region, also where it is IAM.
pub(super) fn custom(variable: &'static str, text: &str, region: &str) -> Result<Endpoint, SettingsError> {
    let fault = |fault| SettingsError::Url { variable, fault };
    let url = Url::parse(text).map_err(|_| fault("not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(fault("neither http nor https"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(fault("without a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fault("must not hold a user or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(fault("must not hold a query or fragment"));
    }
    let base = url.as_str().trim_end_matches('/').to_owned();
    Ok(Endpoint { base, region: region.to_owned(), custom: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_lead_to_the_endpoints_of_their_partition() {
        let cases = [
            ("us-east-1", "aws", "s3.us-east-1.amazonaws.com", "iam.amazonaws.com", "us-east-1"),
            ("eu-central-1", "aws", "s3.eu-central-1.amazonaws.com", "iam.amazonaws.com", "us-east-1"),
            ("xx-test-1", "aws", "s3.xx-test-1.amazonaws.com", "iam.amazonaws.com", "us-east-1"),
            (
                "cn-northwest-1",
                "aws-cn",
                "s3.cn-northwest-1.amazonaws.com.cn",
                "iam.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
            ),
            (
                "us-gov-east-1",
                "aws-us-gov",
                "s3.us-gov-east-1.amazonaws.com",
                "iam.us-gov.amazonaws.com",
                "us-gov-west-1",
            ),
            (
                "eusc-de-east-1",
                "aws-eusc",
                "s3.eusc-de-east-1.amazonaws.eu",
                "iam.eusc-de-east-1.amazonaws.eu",
                "eusc-de-east-1",
            ),
        ];
        for (region, partition, s3, iam, iam_region) in cases {
            let endpoints = Endpoints::choose(region, Chosen::default()).unwrap();
            assert_eq!(endpoints.partition, partition);
            assert_eq!(endpoints.s3.location(), s3);
            assert_eq!((endpoints.s3.region.as_str(), endpoints.sts.region.as_str()), (region, region));
            assert_eq!(endpoints.iam.base, format!("https://{iam}"));
            assert_eq!(endpoints.iam.region, iam_region);
            assert_eq!(endpoints.sts.location(), s3.replacen("s3", "sts", 1));
            assert!(endpoints.need_roots());
        }
    }

    #[test]
    fn the_own_url_beats_the_general_one() {
        let chosen =
            Chosen { all: Some("http://all:1/"), s3: Some("https://s3.test/p/"), ..Chosen::default() };
        let endpoints = Endpoints::choose("garage", chosen).unwrap();
        assert_eq!(endpoints.s3.base, "https://s3.test/p");
        assert_eq!(endpoints.s3.location(), "s3.test/p");
        assert_eq!((endpoints.iam.base.as_str(), endpoints.iam.region.as_str()), ("http://all:1", "garage"));
        assert!(endpoints.sts.custom && endpoints.sts.is_plain_http() && endpoints.need_roots());
        let plain = Chosen { all: Some("http://127.0.0.1:4566"), ..Chosen::default() };
        assert!(!Endpoints::choose("us-east-1", plain).unwrap().need_roots());
    }

    #[test]
    fn what_cannot_work_names_its_variable() {
        let url = |all| Chosen { all: Some(all), ..Chosen::default() };
        let cases = [
            ("us-east-1", url("s3.test"), "AWS_ENDPOINT_URL: not a URL"),
            ("us-east-1", url("ftp://s3.test"), "AWS_ENDPOINT_URL: neither http nor https"),
            (
                "us-east-1",
                url("http://u:planted@s3.test"),
                "AWS_ENDPOINT_URL: must not hold a user or password",
            ),
            ("us-east-1", url("http://s3.test/?a"), "AWS_ENDPOINT_URL: must not hold a query or fragment"),
            (
                "us-east-1",
                Chosen { iam: Some("http://"), ..Chosen::default() },
                "AWS_ENDPOINT_URL_IAM: not a URL",
            ),
            ("", Chosen::default(), "AWS_REGION: is not the name of a region, such as us-west-2"),
            ("a.evil.test/", Chosen::default(), "AWS_REGION: is not the name of a region, such as us-west-2"),
            (
                "EU",
                Chosen { s3: Some("http://s3.test"), ..Chosen::default() },
                "AWS_REGION: is not the name of a region, such as us-west-2",
            ),
            ("a/b", url("http://s3.test"), "AWS_REGION: is not the name of a region, such as us-west-2"),
        ];
        for (region, chosen, words) in cases {
            let err = Endpoints::choose(region, chosen).unwrap_err();
            assert_eq!(format!("{}: {err}", err.variable()), words);
        }
    }
}
