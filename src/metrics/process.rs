//! What the system says of this process. Names and meanings are those of Prometheus' own client libraries.
//!
//! What cannot be read is left out: another system, or no descriptor free.
//!
//! Sources: proc(5); Prometheus, "Writing client libraries", "Process metrics".

use super::family::write_gauge;

/// Writes what there is.
pub(super) fn write(out: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(kib) = number_after(&status, "VmRSS:") {
        let help = "Memory of the process that is in RAM.";
        write_gauge(out, "process_resident_memory_bytes", help, kib.saturating_mul(1_024));
    }
    if let Some(threads) = number_after(&status, "Threads:") {
        write_gauge(out, "process_threads", "Threads of the process.", threads);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        let open = entries.count().saturating_sub(1); // one is the folder that was opened to count
        write_gauge(out, "process_open_fds", "File descriptors that are open.", open);
    }
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if let Some(most) = number_after(&limits, "Max open files") {
        write_gauge(out, "process_max_fds", "File descriptors that may be open.", most);
    }
}

/// The first number on the line that begins so.
fn number_after(text: &str, beginning: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(beginning))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described() {
        let mut text = String::new();
        write(&mut text);
        let value = |name: &str| {
            let line = text.lines().find_map(|it| it.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name} is not in:\n{text}")).parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1_000_000.0);
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        assert_eq!(number_after("Max open files            unlimited", "Max open files"), None);
        assert_eq!(number_after("VmRSS:\t   12 kB\n", "VmRSS:"), Some(12));
        assert_eq!(number_after("", "VmRSS:"), None);
    }
}
