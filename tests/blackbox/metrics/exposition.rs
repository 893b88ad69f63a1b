//! A reader of Prometheus' text format that takes nothing for granted.
//!
//! Source: Prometheus, "Exposition formats", text format 0.0.4.

use std::collections::{BTreeMap, BTreeSet};

/// Labels and their values, sorted.
type Labels = Vec<(String, String)>;

/// A page that was found to be well formed.
#[derive(Debug)]
pub(super) struct Page {
    /// By name and labels.
    samples: BTreeMap<(String, Labels), f64>,
    /// Name and type of each family, and the names of its labels.
    families: Vec<(String, String, BTreeSet<String>)>,
}

/// A family while it is read.
struct Family {
    name: String,
    kind: Option<String>,
    samples: Vec<(String, Labels, f64)>,
}

impl Page {
    /// Reads a page, or says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Page, String> {
        if !text.ends_with('\n') || text.contains('\r') {
            return Err("a line does not end in LF".to_owned());
        }
        let mut page = Page { samples: BTreeMap::new(), families: Vec::new() };
        let mut families: Vec<Family> = Vec::new();
        for line in text.trim_end_matches('\n').split('\n') {
            read_line(line, &mut families).map_err(|err| format!("{err}: {line:?}"))?;
        }
        for (index, family) in families.iter().enumerate() {
            family.check().map_err(|err| format!("{}: {err}", family.name))?;
            if families[..index].iter().any(|it| it.name == family.name) {
                return Err(format!("{} comes twice", family.name));
            }
            for (name, labels, value) in &family.samples {
                if page.samples.insert((name.clone(), labels.clone()), *value).is_some() {
                    return Err(format!("{name} {labels:?} comes twice"));
                }
            }
            page.families.push((
                family.name.clone(),
                family.kind.clone().unwrap_or_default(),
                family.labels(),
            ));
        }
        Ok(page)
    }

    /// Name and type of each family, and the names of its labels.
    pub(super) fn families(&self) -> Vec<(String, String, BTreeSet<String>)> {
        self.families.clone()
    }

    /// The one sample of that name with exactly these labels.
    pub(super) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut labels: Labels = labels.iter().map(|(key, it)| ((*key).into(), (*it).into())).collect();
        labels.sort();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }

    /// All samples of that name with these labels among theirs, together.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |of: &Labels| labels.iter().all(|(key, it)| of.iter().any(|(k, v)| k == key && v == it));
        self.samples.iter().filter(|((of, it), _)| of == name && has(it)).map(|(_, value)| value).sum()
    }

    /// How many samples there are.
    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }
}

/// Reads a line into the families before it.
fn read_line(line: &str, families: &mut Vec<Family>) -> Result<(), String> {
    if let Some(rest) = line.strip_prefix("# HELP ") {
        let (name, help) = rest.split_once(' ').ok_or("a help without a text")?;
        if !is_name(name, true) || help.trim().is_empty() || help.contains('\\') {
            return Err("a wrong help".to_owned());
        }
        families.push(Family { name: name.to_owned(), kind: None, samples: Vec::new() });
        return Ok(());
    }
    let family = families.last_mut().ok_or("before the first help")?;
    if let Some(rest) = line.strip_prefix("# TYPE ") {
        let (name, kind) = rest.split_once(' ').ok_or("a type without a word")?;
        let is_its = name == family.name && family.kind.is_none() && family.samples.is_empty();
        if !is_its || !["counter", "gauge", "histogram"].contains(&kind) {
            return Err("a wrong type".to_owned());
        }
        family.kind = Some(kind.to_owned());
        return Ok(());
    }
    let sample = read_sample(line)?;
    let suffixes: &[&str] = match family.kind.as_deref() {
        Some("histogram") => &["_bucket", "_sum", "_count"],
        Some(_) => &[""],
        None => return Err("a sample before its type".to_owned()),
    };
    if !suffixes.iter().any(|it| sample.0 == format!("{}{it}", family.name)) {
        return Err(format!("a sample among those of {}", family.name));
    }
    family.samples.push(sample);
    Ok(())
}

/// Whether a name of a metric, which may hold colons, or of a label may be so.
fn is_name(name: &str, of_metric: bool) -> bool {
    let may = |it: char| it.is_ascii_alphanumeric() || it == '_' || (of_metric && it == ':');
    let begins = name.chars().next().is_some_and(|it| may(it) && !it.is_ascii_digit());
    begins && name.chars().all(may) && (of_metric || !name.starts_with("__"))
}

/// `name value`, or `name{label="value",...} value`.
fn read_sample(line: &str) -> Result<(String, Labels, f64), String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("a label without a value")?;
            let (value, after) = read_value(after)?;
            if !is_name(label, false) || labels.iter().any(|(key, _)| key == label) {
                return Err(format!("the label {label:?}"));
            }
            labels.push((label.to_owned(), value));
            if let Some(after) = after.strip_prefix("} ") {
                rest = after;
                break;
            }
            rest = after.strip_prefix(',').ok_or("neither , nor }")?;
        }
    } else {
        rest = &rest[1..];
    }
    labels.sort();
    let is_number =
        |it: &str| !it.is_empty() && it.chars().all(|it| it.is_ascii_digit() || ".-e+".contains(it));
    let value = rest.parse::<f64>().ok().filter(|it| is_number(rest) && it.is_finite());
    let value = value.ok_or("the value is no number")?;
    if !is_name(name, true) {
        return Err("the name".to_owned());
    }
    Ok((name.to_owned(), labels, value))
}

/// A label's value up to its closing quote, and what follows.
fn read_value(text: &str) -> Result<(String, &str), String> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, it @ ('\\' | '"'))) => value.push(it),
                _ => return Err("an unknown escape".to_owned()),
            },
            other => value.push(other),
        }
    }
    Err("a value without its end".to_owned())
}

impl Family {
    /// The names of its labels, but the bounds of buckets.
    fn labels(&self) -> BTreeSet<String> {
        let names = self.samples.iter().flat_map(|(_, labels, _)| labels).map(|(name, _)| name.clone());
        names.filter(|it| it != "le").collect()
    }

    /// What the lines of a family must be together.
    fn check(&self) -> Result<(), String> {
        let kind = self.kind.as_deref().ok_or("no type")?;
        if self.samples.is_empty() {
            return Err("no samples".to_owned());
        }
        if (kind == "counter") != self.name.ends_with("_total") {
            return Err(format!("a {kind} of that name"));
        }
        if kind != "gauge" && self.samples.iter().any(|(.., value)| *value < 0.0) {
            return Err("less than nothing".to_owned());
        }
        if kind == "histogram" { self.check_histogram() } else { Ok(()) }
    }

    /// Buckets ascend in bound and in number, the last is infinite and holds all.
    fn check_histogram(&self) -> Result<(), String> {
        let of = |suffix: &str| {
            let name = format!("{}{suffix}", self.name);
            self.samples.iter().filter(move |it| it.0 == name)
        };
        let mut buckets: BTreeMap<Labels, Vec<(String, f64)>> = BTreeMap::new();
        for (_, labels, value) in of("_bucket") {
            let mut labels = labels.clone();
            let at = labels.iter().position(|(name, _)| name == "le").ok_or("a bucket without le")?;
            let (_, bound) = labels.remove(at);
            buckets.entry(labels).or_default().push((bound, *value));
        }
        if buckets.len() != of("_count").count() || buckets.len() != of("_sum").count() {
            return Err("not one count and one sum for each".to_owned());
        }
        for (labels, buckets) in buckets {
            let count = of("_count").find(|it| it.1 == labels).ok_or("no count")?.2;
            let last = buckets.last().ok_or("no bucket")?;
            let bounds: Vec<f64> = buckets
                .iter()
                .map(
                    |(bound, _)| {
                        if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap_or(f64::NAN) }
                    },
                )
                .collect();
            let ascends = bounds.windows(2).all(|it| it[0] < it[1]);
            let grows = buckets.windows(2).all(|it| it[0].1 <= it[1].1);
            if !ascends
                || !grows
                || last.0 != "+Inf"
                || last.1 != count
                || !of("_sum").any(|it| it.1 == labels)
            {
                return Err(format!("{labels:?}: {buckets:?} of {count}"));
            }
        }
        Ok(())
    }
}

#[test]
fn wrong_pages_are_refused() {
    let right = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"\\\"\\\\\\n\",y=\"2\"} 1\na_total{x=\"3\"} 2\n\
         # HELP b B.\n# TYPE b gauge\nb -0.5\n# HELP c C.\n# TYPE c histogram\nc_bucket{le=\"1\"} 1\n\
         c_bucket{le=\"+Inf\"} 2\nc_sum 3.5\nc_count 2\n";
    let page = Page::parse(right).unwrap();
    assert_eq!(page.value("a_total", &[("y", "2"), ("x", "\"\\\n")]), Some(1.0));
    assert_eq!((page.sum("a_total", &[]), page.value("b", &[]), page.len()), (3.0, Some(-0.5), 7));
    for (part, instead) in [
        ("c_count 2\n", "c_count 2"),
        ("# TYPE b gauge\n", ""),
        ("# HELP b B.\n", ""),
        ("# HELP b B.", "# HELP b "),
        ("b gauge", "b summery"),
        ("b -0.5", "b"),
        ("b -0.5", "b  -0.5"),
        ("b -0.5", "b NaN"),
        ("b -0.5", "b -0.5 1700000000000 "),
        ("b -0.5", "d 1"),
        ("b -0.5", "b -0.5\nb 1"),
        ("b -0.5", "b{} 1"),
        ("b -0.5", "b{1x=\"\"} 1"),
        ("b -0.5", "b{x=\"1\",x=\"2\"} 1"),
        ("\\\\", "\\t"),
        ("y=\"2\"} 1", "y=\"2} 1"),
        ("a_total{x=\"3\"} 2", "a_total{x=\"3\"} -2"),
        ("c_bucket{le=\"1\"} 1", "c_bucket{le=\"1\"} 3"),
        ("c_bucket{le=\"1\"} 1", "c_bucket{le=\"1\"} 1\nc_bucket{le=\"0.5\"} 1"),
        ("le=\"+Inf\"} 2", "le=\"+Inf\"} 1"),
        ("le=\"+Inf\"} 2", "le=\"9\"} 2"),
        ("c_sum 3.5\n", ""),
        ("c_count 2\n", ""),
        ("# HELP c C.\n# TYPE c histogram", "# HELP b B.\n# TYPE b histogram"),
    ] {
        let wrong = right.replace(part, instead);
        assert_ne!(wrong, right, "{part}");
        assert!(Page::parse(&wrong).is_err(), "{instead:?} in place of {part:?} was accepted");
    }
}
