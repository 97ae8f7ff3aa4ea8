//! Rules for layers: an import points down, and what decides has no threads, sockets or clock.

use super::super::Finding;
use super::super::rust::{Line, words_at};
use super::super::tree::{File, Tree};

/// Folders with the crate in each, lowest first. A crate may name those in the folders before.
const CRATES: [(&str, &str); 3] =
    [("uffd/", "godwit_uffd"), ("migration/", "godwit_migration"), ("vmm/", "godwit_vmm")];

/// Crates that only tests and tools may name.
const ABOVE: [&str; 2] = ["godwit_tests", "godwit_bench"];

/// The modules of `migration`, highest first. A module may name those behind it.
const MODULES: [&str; 10] = [
    "driver",
    "transport",
    "metrics",
    "snapshot",
    "provider",
    "proto",
    "schedule",
    "wire",
    "page",
    "limits",
];

/// The modules of `migration` that decide. A simulator steps them, so they take the time as an
/// argument and leave waiting to others.
const DECIDING: [&str; 7] = ["snapshot", "provider", "proto", "schedule", "wire", "page", "limits"];

/// What they may not name.
const OUTSIDE: [&str; 10] = [
    "thread::spawn",
    "thread::scope",
    "thread::Builder",
    "thread::sleep",
    "thread::park",
    "std::net",
    "std::os::unix::net",
    "Instant::now",
    "SystemTime",
    "clock_gettime",
];

pub fn imports_point_down(file: &File, _: &Tree) -> Vec<Finding> {
    let Some(rust) = file.rust.as_ref().filter(|_| !file.is_test()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let code = rust.lines.iter().enumerate().filter(|(_, line)| !line.in_test);
    for (n, line) in code {
        let message = crate_above(&file.path, line)
            .or_else(|| module_above(&file.path, line))
            .or_else(|| outside(&file.path, line));
        found.extend(message.map(|message| file.finding(n + 1, message)));
    }
    found
}

fn crate_above(path: &str, line: &Line) -> Option<String> {
    let own = CRATES.iter().position(|(folder, _)| path.starts_with(folder))?;
    let above = CRATES[own + 1..].iter().map(|(_, name)| *name).chain(ABOVE);
    let named = above.into_iter().find(|name| words_at(&line.code, name).next().is_some())?;
    Some(format!(
        "`{}` may not name `{named}`, which is above it; pass the value in, or let it implement a \
         trait of yours",
        CRATES[own].1
    ))
}

fn module_above(path: &str, line: &Line) -> Option<String> {
    let own = module_of(path)?;
    let Some(rank) = MODULES.iter().position(|module| *module == own) else {
        return Some(format!(
            "`{own}` is not in MODULES of tools/xtask/src/tidy/rules/layer.rs; add it where it \
             belongs"
        ));
    };
    let names = |module: &&&str| {
        let path = format!("crate::{module}");
        words_at(&line.code, &path).next().is_some()
    };
    let named = MODULES[..rank].iter().find(names)?;
    Some(format!(
        "`{own}` may not name `{named}`, which is above it; pass the value in, or move the type \
         down"
    ))
}

fn outside(path: &str, line: &Line) -> Option<String> {
    let own = module_of(path)?;
    if !DECIDING.contains(&own) {
        return None;
    }
    let named = OUTSIDE.into_iter().find(|name| words_at(&line.code, name).next().is_some())?;
    Some(format!(
        "`{own}` decides and may not name `{named}`; take the time or the bytes as an argument and \
         leave the rest to `driver`"
    ))
}

/// The module of `migration` that a file belongs to.
fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("migration/src/").filter(|inside| *inside != "lib.rs")?;
    Some(inside.split_once('/').map_or(inside.trim_end_matches(".rs"), |(module, _)| module))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let tree = Tree::of(&[(path, text)]);
        imports_point_down(&tree.files[0], &tree).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_crate_that_names_one_above_it_is_found() {
        let text = "use godwit_uffd::page;\nuse godwit_migration::wire;\nuse godwit_vmm::api;\n";
        assert_eq!(lines("uffd/src/lib.rs", text), [2, 3]);
        assert_eq!(lines("migration/src/driver/mod.rs", text), [3]);
        assert_eq!(lines("vmm/src/lib.rs", text), [0; 0]);
        assert_eq!(lines("tools/bench/src/main.rs", text), [0; 0]);
        assert_eq!(lines("vmm/src/cli/mod.rs", "use godwit_tests::until;\n"), [1]);
    }

    #[test]
    fn a_module_that_names_one_above_it_is_found() {
        let text = "use crate::page::Claims;\nlet x = crate::driver::Source::new();\n";
        assert_eq!(lines("migration/src/proto/source.rs", text), [2]);
        assert_eq!(lines("migration/src/page/mod.rs", "use crate::wire::Kind;\n"), [1]);
        assert_eq!(lines("migration/src/driver/mod.rs", text), [0; 0]);
    }

    #[test]
    fn a_module_without_a_place_is_found() {
        assert_eq!(lines("migration/src/magic.rs", "//! Magic.\n"), [1]);
        assert_eq!(lines("migration/src/lib.rs", "//! All.\n"), [0; 0]);
    }

    #[test]
    fn what_decides_has_no_threads_sockets_or_clock() {
        for name in OUTSIDE {
            let text = format!("//! Doc.\nlet x = {name};\n");
            assert_eq!(lines("migration/src/proto/source.rs", &text), [2], "{name}");
            assert_eq!(lines("migration/src/driver/source.rs", &text), [0; 0], "{name}");
        }
    }

    #[test]
    fn tests_may_have_all_of_it() {
        let text = "#[cfg(test)]\nmod tests {\n    use std::net;\n}\n";
        assert_eq!(lines("migration/src/page/claims.rs", text), [0; 0]);
        assert_eq!(lines("migration/src/proto/tests.rs", "use std::net;\n"), [0; 0]);
    }
}
