//! Rules for `unsafe`: where it may be, and what it must say.

use super::super::Finding;
use super::super::rust::Rust;
use super::super::tree::{File, Tree};

/// Where `unsafe` may be: a folder, or one file. Anything else calls a safe function of these.
const ALLOWED: [&str; 9] = [
    // System calls on memory that the kernel and a guest also write.
    "uffd/src/kernel/",
    // The same from outside: processes, signals and memory that tests observe.
    "uffd/testing/src/kernel/",
    // KVM's ioctls, and the page that each vCPU shares with the kernel.
    "vmm/src/kvm/",
    // Guest memory: mapping, advice, registration.
    "vmm/src/memory/",
    // A vCPU's thread tells the kick signal's handler where that page is.
    "vmm/src/vcpu/thread.rs",
    // A record lock on the file of a disk: fcntl takes a structure, and no safe crate has it.
    "vmm/src/devices/virtio/block/lock.rs",
    // The floor that figures are compared with has none of our safe layers in between.
    "tools/bench/src/floor/",
    // A guest's start-up is below what Rust can promise.
    "guest-images/bare/src/machine/",
    "guest-images/bare/src/main.rs",
];

/// How many lines above an `unsafe` a reader looks for its reason.
const LINES_ABOVE_MAX: usize = 30;

/// What an `unsafe` opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Block,
    Impl,
    Function,
    /// An attribute, or the type of a function.
    Other,
}

pub fn unsafe_is_where_it_may_be(file: &File, tree: &Tree) -> Vec<Finding> {
    let Some(rust) = &file.rust else { return Vec::new() };
    let allowed = ALLOWED.iter().any(|place| file.path.starts_with(place));
    let mut places = rust.places("unsafe").peekable();
    if allowed {
        return match places.peek() {
            Some((line, _)) if !module_says_why(file, tree) => {
                let message = "a module with `unsafe` opens with `// UNSAFETY: why` and then \
                               `#![expect(unsafe_code)]`; add both behind the module doc";
                vec![file.finding(line + 1, message.to_owned())]
            }
            _ => Vec::new(),
        };
    }
    let found = places.map(|(line, _)| {
        let message = "`unsafe` may not be here; call a safe function of a module that ALLOWED in \
                       tools/xtask/src/tidy/rules/unsafety.rs lists, or argue for a new place";
        file.finding(line + 1, message.to_owned())
    });
    found.collect()
}

pub fn unsafe_says_why(file: &File, _: &Tree) -> Vec<Finding> {
    let Some(rust) = &file.rust else { return Vec::new() };
    let silent = rust.places("unsafe").filter_map(|(line, at)| {
        let message = match kind(rust, line, at) {
            Kind::Block | Kind::Impl if !says(rust, line, &["SAFETY:"]) => {
                "`unsafe` without its reason; say in a `// SAFETY:` comment right above it which \
                 invariant it rests on, and who keeps it"
            }
            Kind::Function if !says(rust, line, &["# Safety", "SAFETY:"]) => {
                "an `unsafe fn` without its contract; say in a `# Safety` section of its doc what \
                 the caller must see to"
            }
            _ => return None,
        };
        Some(file.finding(line + 1, message.to_owned()))
    });
    silent.collect()
}

/// Whether the file, one of the modules around it, or the item itself says why it is unsafe.
fn module_says_why(file: &File, tree: &Tree) -> bool {
    let opens = |file: &File| {
        let Some(rust) = &file.rust else { return false };
        let expects = |line: &&_| -> bool {
            let line: &super::super::rust::Line = line;
            line.code.trim_start().starts_with("#![expect(unsafe_code)]")
        };
        let until_expect = rust.lines.iter().take_while(|line| !expects(line));
        let says = until_expect.clone().any(|line| line.comment.contains("UNSAFETY:"));
        says && until_expect.count() < rust.lines.len()
    };
    let around = file.path.match_indices('/').filter_map(|(at, _)| {
        let module = tree.get(&format!("{}/mod.rs", &file.path[..at]));
        module.or_else(|| tree.get(&format!("{}.rs", &file.path[..at])))
    });
    let on_item = file.text.contains("#[expect(unsafe_code, reason = ");
    opens(file) || on_item || around.into_iter().any(opens)
}

fn kind(rust: &Rust, line: usize, at: usize) -> Kind {
    let mut rest = rust.after(line, at + "unsafe".len()).map(|(_, c)| c);
    let text: String = rest.by_ref().take(200).collect();
    let text = text.trim_start();
    // `unsafe extern "C" {` is a block, `unsafe extern "C" fn f` a function.
    let text = text.strip_prefix("extern").map_or(text, |rest| {
        rest.trim_start().trim_start_matches('"').trim_start().trim_start_matches('"').trim_start()
    });
    let named_function = text.strip_prefix("fn").is_some_and(|rest| {
        rest.starts_with(char::is_whitespace) && !rest.trim_start().starts_with('(')
    });
    if text.starts_with('{') {
        Kind::Block
    } else if text.starts_with("impl") {
        Kind::Impl
    } else if named_function {
        Kind::Function
    } else {
        Kind::Other
    }
}

/// Whether a comment on this line, or above it and up to the start of the statement, has one of
/// the `words`.
fn says(rust: &Rust, line: usize, words: &[&str]) -> bool {
    let has = |n: usize| words.iter().any(|word| rust.lines[n].comment.contains(word));
    if has(line) {
        return true;
    }
    for n in (line.saturating_sub(LINES_ABOVE_MAX)..line).rev() {
        if has(n) {
            return true;
        }
        let code = rust.lines[n].code.trim();
        let is_comment = code.is_empty() && !rust.lines[n].comment.is_empty();
        let is_attribute = code.starts_with("#[");
        let ends_before = code.is_empty() || code.ends_with([';', '{', '}', ',']);
        if !is_comment && !is_attribute && ends_before {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENING: &str = "//! Doc.\n\n// UNSAFETY: ioctls.\n#![expect(unsafe_code)]\n\n";

    fn lines(rule: super::super::super::Rule, path: &str, text: &str) -> Vec<usize> {
        let tree = Tree::of(&[(path, text)]);
        rule(&tree.files[0], &tree).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn unsafe_outside_of_the_list_is_found() {
        let text = "//! unsafe\nfn f() {\n    // SAFETY: x\n    unsafe { g() }\n}\n";
        assert_eq!(lines(unsafe_is_where_it_may_be, "migration/src/x.rs", text), [4]);
        let text = OPENING.to_owned() + text;
        assert_eq!(lines(unsafe_is_where_it_may_be, "uffd/src/kernel/x.rs", &text), [0; 0]);
        assert_eq!(lines(unsafe_is_where_it_may_be, "uffd/src/kernel.rs", &text), [9]);
    }

    #[test]
    fn a_module_that_does_not_open_with_its_reason_is_found() {
        let text = "//! Doc.\nunsafe fn f() {}\n";
        assert_eq!(lines(unsafe_is_where_it_may_be, "vmm/src/kvm/x.rs", text), [2]);
        let late = "//! Doc.\n#![expect(unsafe_code)]\n// UNSAFETY: why\nunsafe fn f() {}\n";
        assert_eq!(lines(unsafe_is_where_it_may_be, "vmm/src/kvm/x.rs", late), [4]);
    }

    #[test]
    fn the_module_around_can_give_the_reason() {
        let inner = "//! Doc.\nunsafe fn f() {}\n";
        let tree = Tree::of(&[("vmm/src/kvm/x.rs", inner), ("vmm/src/kvm/mod.rs", OPENING)]);
        assert_eq!(unsafe_is_where_it_may_be(&tree.files[0], &tree), []);
    }

    #[test]
    fn a_block_without_its_reason_is_found() {
        let rule = unsafe_says_why;
        let check = |text| lines(rule, "uffd/src/kernel/x.rs", text);
        assert_eq!(check("fn f() {\n    unsafe { g() }\n}\n"), [2]);
        assert_eq!(check("// SAFETY: not this.\nlet a = 1;\nlet b = unsafe { g() };\n"), [3]);
        assert_eq!(check("unsafe impl Send for X {}\n"), [1]);
        assert_eq!(check("// SAFETY: x\n\nunsafe extern \"C\" {\n}\n"), [3]);
    }

    #[test]
    fn a_reason_above_the_statement_is_enough() {
        let check = |text| lines(unsafe_says_why, "uffd/src/kernel/x.rs", text);
        assert_eq!(
            check("// SAFETY: x,\n// and y.\nlet b = check(\n    unsafe { g() });\n"),
            [0; 0]
        );
        assert_eq!(check("let b =\n    // SAFETY: x\n    unsafe { g() };\n"), [0; 0]);
        assert_eq!(check("// SAFETY: x\n#[allow(x)]\nunsafe impl Send for X {}\n"), [0; 0]);
        assert_eq!(check("// SAFETY: x\nunsafe extern \"C\" {\n}\n"), [0; 0]);
    }

    #[test]
    fn an_unsafe_function_states_its_contract() {
        let check = |text| lines(unsafe_says_why, "uffd/src/kernel/x.rs", text);
        assert_eq!(check("/// F.\nunsafe fn f() {}\n"), [2]);
        assert_eq!(check("/// F.\n///\n/// # Safety\n/// x\npub unsafe fn f() {}\n"), [0; 0]);
        assert_eq!(
            check("type F = unsafe fn(u8);\ntype G = unsafe extern \"C\" fn(u8);\n"),
            [0; 0]
        );
    }
}
