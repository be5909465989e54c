//! Checks the structure that docs/architecture.md promises against the paths in the sources: a
//! module knows only those above it in the list, names come from the module that defines them, and
//! a module's files form no circle.
//!
//! The list is read from the document, so it cannot go stale. Nor can the page's diagrams: each
//! holds the source that it was drawn from.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::mem;
use std::path::Path;

/// Modules by name, with their row in the list: those of one row do not know each other.
type Rows = BTreeMap<String, usize>;

#[test]
fn modules_know_only_those_above_them() {
    let mut rows = rows(&read("docs/architecture.md"));
    // For the tests of all modules.
    rows.insert("generated".to_owned(), 0);
    rows.insert("mutate".to_owned(), 0);
    let mut found = Vec::new();
    for (path, text) in sources() {
        found.extend(offences(&rows, &path, &text));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_list_has_every_module() {
    let listed: BTreeSet<String> = rows(&read("docs/architecture.md")).into_keys().collect();
    assert_eq!(listed, declared(&read("src/lib.rs")));
}

/// What `scripts/diagrams` draws, compared without Graphviz.
#[test]
fn the_diagrams_are_current() {
    let page = read("docs/architecture.md");
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/img");
    let mut sources = vec![("modules".to_owned(), layers(&page))];
    for entry in fs::read_dir(images).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        if let Some(name) = file.strip_suffix(".dot") {
            sources.push((name.to_owned(), read(&format!("docs/img/{file}"))));
        }
    }
    assert_eq!(sources.len(), 3);
    for (name, source) in sources {
        let picture = format!("img/{name}.svg");
        assert!(page.contains(&picture), "nothing shows {picture}");
        assert!(
            is_drawn_from(&read(&format!("docs/{picture}")), &source),
            "docs/{picture} is stale: run `make diagrams`"
        );
    }
}

/// Handles and vocabulary, which a newcomer reads in one sitting: other public names belong in
/// modules.
#[test]
fn the_crate_root_stays_short() {
    let root = read("src/lib.rs");
    let names: Vec<_> = root
        .lines()
        .filter(|line| line.starts_with("pub use "))
        .collect();
    assert!(
        (20..=35).contains(&names.len()),
        "{}: {names:#?}",
        names.len()
    );
}

/// The common calls, and the views of areas: other calls belong to a view.
#[test]
fn the_handle_stays_short() {
    let mut methods = Vec::new();
    for (path, text) in sources() {
        if !path.starts_with("src/katran/") {
            continue;
        }
        let mut on_the_handle = false;
        for line in text.lines() {
            match line {
                "impl Katran {" => on_the_handle = true,
                "}" => on_the_handle = false,
                _ if on_the_handle && line.starts_with("    pub fn ") => {
                    methods.push(line.trim().to_owned());
                }
                _ => {}
            }
        }
    }
    assert!(
        (50..=66).contains(&methods.len()),
        "{}: {methods:#?}",
        methods.len()
    );
}

/// On the handle's page the calls that everybody needs come first: rustdoc follows the order in
/// which `src/katran/mod.rs` declares its files.
#[test]
fn the_handle_begins_with_what_everybody_needs() {
    let root = read("src/katran/mod.rs");
    let files = root.lines().filter_map(|line| {
        let name = line.strip_prefix("mod ")?.strip_suffix(';')?;
        let path = format!("src/katran/{name}.rs");
        let blocks = blocks(&path, &read(&path)).into_iter();
        let mut on_the_handle = blocks.filter(|block| block.of == "Katran");
        on_the_handle.find_map(|block| block.public.into_iter().next())
    });
    let first: Vec<String> = files.take(3).collect();
    assert_eq!(first, ["builder", "attach", "add_vip"]);
}

/// A type's page in the documentation lists its blocks of methods with their headings.
#[test]
fn blocks_of_public_methods_have_headings() {
    let mut of_types: BTreeMap<String, Vec<(String, Block)>> = BTreeMap::new();
    for (path, text) in sources() {
        for block in blocks(&path, &text) {
            if !block.public.is_empty() {
                let of_type = of_types.entry(block.of.clone()).or_default();
                of_type.push((path.clone(), block));
            }
        }
    }
    assert!(of_types.len() > 40, "{:?}", of_types.keys());
    let mut found = Vec::new();
    for of_type in of_types.values() {
        for (path, block) in of_type {
            let needs_one = of_type.len() > 1 || block.public.len() >= 3;
            if needs_one && !block.has_heading {
                found.push(format!("{path}: {}: {:?}", block.of, block.public));
            }
        }
    }
    assert!(
        found.is_empty(),
        "without a heading (`/// # Loading`) above `impl`:\n{}",
        found.join("\n")
    );
}

#[test]
fn blocks_are_found() {
    let text = "/// # Loading\n#[cfg(test)]\nimpl<'a, T> Own<'a, T> {\n    pub fn a() {\n    }\n    \
                fn b() {}\n    pub const fn c() {}\n    pub(crate) fn d() {}\n}\n\
                impl From<Own> for Other {\n    pub fn e() {}\n}\n/// Text.\nimpl Other {\n}\n";
    let found: Vec<_> = blocks("", text)
        .into_iter()
        .map(|block| (block.of, block.has_heading, block.public.join(" ")))
        .collect();
    let block = |of: &str, has, public: &str| (of.to_owned(), has, public.to_owned());
    assert_eq!(
        found,
        [block("Own", true, "a c"), block("Other", false, "")]
    );
}

/// A method that changes something for packets is a transaction (`src/katran/change.rs`), or calls
/// one.
#[test]
fn every_change_is_a_transaction() {
    // Callbacks do not concern packets.
    let others = ["on_real_added", "on_real_removed", "remove_callback"];
    let begins = [
        "Prepared::",
        "Written::nothing",
        "Written::surely",
        ".change_at_once(",
        ".change_surely(",
    ];
    let sources = sources();
    // Packets make and remove flow entries as well.
    let files = sources
        .iter()
        .filter(|(path, _)| path.starts_with("src/katran/") && path != "src/katran/flows.rs");
    let methods: Vec<Method> = files.flat_map(|(path, text)| methods(path, text)).collect();
    let mut changing: BTreeSet<&str> = BTreeSet::new();
    loop {
        let before = changing.len();
        for method in &methods {
            let calls = |name: &&str| {
                ["self.", "katran.", "_mut().", "Katran::"]
                    .iter()
                    .any(|on| method.body.contains(&format!("{on}{name}(")))
            };
            if begins.iter().any(|begin| method.body.contains(begin)) || changing.iter().any(calls)
            {
                changing.insert(&method.name);
            }
        }
        if changing.len() == before {
            break;
        }
    }
    let public = methods.iter().filter(|method| method.is_public_change);
    let (found, without): (Vec<_>, Vec<_>) = public
        .map(|method| method.name.as_str())
        .partition(|name| changing.contains(name));
    assert!(found.len() > 35, "{found:?}");
    let without: Vec<_> = without
        .into_iter()
        .filter(|name| !others.contains(name) && !name.ends_with("_mut"))
        .collect();
    assert_eq!(without, [""; 0], "they change something by themselves");
}

/// A balancer is handed over between two calls, so each call that changes something begins one
/// (`Katran::call`), or consists of such calls.
#[test]
fn every_change_keeps_the_balancer_until_it_ends() {
    // They change nothing for packets.
    let others = ["on_real_added", "on_real_removed", "remove_callback"];
    let sources = sources();
    let files = sources
        .iter()
        .filter(|(path, _)| path.starts_with("src/katran/"));
    let methods: Vec<Method> = files.flat_map(|(path, text)| methods(path, text)).collect();
    let begins = |method: &&Method| {
        let first = method
            .body
            .split_once("{let")
            .map_or("", |(_, first)| first);
        ["_call=self.call()?;", "_call=self.katran.call()?;"]
            .iter()
            .any(|begin| first.starts_with(begin))
            || [
                "Ok(_call)=self.call()else{",
                "Ok(_call)=self.katran.call()else{",
            ]
            .iter()
            .any(|begin| first.starts_with(begin))
    };
    let begun: BTreeSet<&str> = methods.iter().filter(begins).map(|of| &*of.name).collect();
    // Methods that only call one of them.
    let delegates = |method: &&Method| {
        let body = method.body.rsplit('{').next().unwrap_or_default();
        let calls = |name: &&str| body.contains(&format!("self.{name}("));
        begun.iter().any(calls)
    };
    let public = methods.iter().filter(|method| method.is_public_change);
    let (found, without): (Vec<&Method>, Vec<&Method>) =
        public.partition(|method| begins(method) || delegates(method));
    assert!(found.len() > 45, "{}", found.len());
    let without: Vec<_> = without
        .into_iter()
        .map(|method| method.name.as_str())
        .filter(|name| !others.contains(name) && !name.ends_with("_mut"))
        .collect();
    assert_eq!(without, [""; 0], "they may be cut off by a handover");
}

/// A method with `&self` writes nothing that packets see. The exceptions switch events on, which
/// concern no VIP and no real.
#[test]
fn what_borrows_the_handle_to_read_writes_nothing_that_packets_see() {
    let writes = [
        "Start{",
        ".update(",
        ".delete(",
        ".clear(",
        ".set_gateway",
        ".live.set_",
        ".cells.set",
    ];
    let sources = sources();
    let files = sources
        .iter()
        .filter(|(path, _)| path.starts_with("src/katran/"));
    let reading: Vec<Method> = files
        .flat_map(|(path, text)| methods(path, text))
        .filter(|method| method.body.contains("(&self"))
        .collect();
    let mut writing: BTreeSet<&str> = BTreeSet::new();
    loop {
        let before = writing.len();
        for method in &reading {
            let calls = |name: &&str| {
                let on = ["self.", "katran."].map(|on| format!("{on}{name}("));
                on.iter().any(|call| method.body.contains(call))
            };
            if writes.iter().any(|write| method.body.contains(write)) || writing.iter().any(calls) {
                writing.insert(&method.name);
            }
        }
        if writing.len() == before {
            break;
        }
    }
    // Private ones that write are found, so public ones would be.
    assert!(
        writing.contains("insert") && writing.contains("write_gateways"),
        "{writing:?}"
    );
    let public = reading.iter().filter(|method| method.is_public);
    let public: BTreeSet<&str> = public.map(|method| method.name.as_str()).collect();
    let found: Vec<_> = public.intersection(&writing).copied().collect();
    assert_eq!(found, ["start", "to_list", "to_pcap"]);
}

#[test]
fn files_of_a_module_form_no_circle() {
    let mut edges: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    let sources = sources();
    // Those beside a `mod.rs`, at any depth; a file and the directory beside it count as one. A
    // `mod.rs` has what its files share, and knows them all.
    let parts: BTreeSet<Vec<String>> = sources
        .iter()
        .map(|(path, _)| module_of(path))
        .flat_map(|module| (2..=module.len()).map(move |depth| module[..depth].to_vec()))
        .collect();
    let exports: BTreeMap<String, BTreeMap<String, String>> = sources
        .iter()
        .filter(|(path, _)| module_of(path).len() == 1)
        .map(|(path, text)| (module_of(path).remove(0), exports(text)))
        .collect();
    for (path, text) in &sources {
        let module = module_of(path);
        for (_, mut target) in paths(&module, text) {
            if let [first, second, ..] = &mut target[..]
                && let Some(definer) = exports.get(first).and_then(|names| names.get(second))
            {
                second.clone_from(definer);
            }
            let both = module.iter().zip(&target);
            let common = both.take_while(|(own, its)| own == its).count();
            if let (1.., Some(_), Some(to)) = (
                common,
                module.get(common),
                target.get(..common + 1).map(<[String]>::to_vec),
            ) && parts.contains(&to)
            {
                let from = module[..=common].to_vec();
                edges.entry(from).or_default().insert(to);
            }
        }
    }
    let resolver = ["next_hop", "resolver"].map(str::to_owned);
    assert!(edges.contains_key(&resolver[..]));
    assert!(edges.len() > 20, "the paths were not found: {edges:?}");
    assert_eq!(circle(&edges), None);
}

#[test]
fn offences_are_found() {
    let page = "## The modules\n| module | layer | holds |\n| --- | --- | --- |\n| `types` | a | x |\n\
                | `ring`, `sys` | a | `y`; no kernel |\n| `katran` | b | z |\n";
    let layers = layers(page);
    assert_eq!(
        layers,
        "a: `types`\na: `ring`, `sys` (no kernel)\nb: `katran`\n"
    );
    let picture = format!("<metadata><![CDATA[\n{layers}]]></metadata>\n");
    assert!(is_drawn_from(&picture, &layers));
    assert!(!is_drawn_from(&picture, &layers.replace("b:", "c:")));
    let rows = rows(page);
    assert_eq!(rows.len(), 4);
    for (path, text, is_offence) in [
        ("src/ring/mod.rs", "use crate::types::Vip;", false),
        ("src/ring/mod.rs", "use crate::ring::Ring;", false),
        ("src/ring/mod.rs", "use crate::katran::Katran;", true),
        ("src/ring/mod.rs", "use crate::sys::map;", true),
        (
            "src/ring/hash.rs",
            "    let x = crate::katran::mix(1);",
            true,
        ),
        ("src/katran/mod.rs", "use crate::Vip;", true),
        ("src/katran/mod.rs", "use crate::{types::Vip};", true),
        ("src/katran/mod.rs", "use crate::unlisted::Vip;", true),
        ("src/katran/mod.rs", "/// See [`Vip`](crate::Vip).", false),
        ("src/katran/mod.rs", "use super::types::Vip;", true),
        ("src/ring/hash.rs", "use super::Ring;", false),
        (
            "src/ring/hash.rs",
            "use super::super::katran::Katran;",
            true,
        ),
        ("src/ring.rs", "mod tests {\n    use super::*;\n}", false),
        (
            "src/ring.rs",
            "mod tests {\n    use super::super::katran;\n}",
            true,
        ),
        ("src/ring.rs", "mod tests {\n}\nuse super::katran;", true),
    ] {
        let found = offences(&rows, path, text);
        assert_eq!(!found.is_empty(), is_offence, "{path}: {text}: {found:?}");
    }
    let edge =
        |from: &str, to: &str| (vec![from.to_owned()], BTreeSet::from([vec![to.to_owned()]]));
    assert_eq!(
        circle(&BTreeMap::from([edge("a", "b"), edge("b", "c")])),
        None
    );
    let to_circle = BTreeMap::from([edge("a", "b"), edge("b", "c"), edge("c", "b")]);
    let found = circle(&to_circle);
    assert_eq!(
        found,
        Some(vec![vec!["b".to_owned()], vec!["c".to_owned()]])
    );
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The modules in the first column of the page's table.
fn rows(document: &str) -> Rows {
    let mut rows = Rows::new();
    for (row, line) in table(document).into_iter().enumerate() {
        let column = line.split('|').nth(1).unwrap_or_default();
        for name in column.split('`').skip(1).step_by(2) {
            let before = rows.insert(name.to_owned(), row);
            assert_eq!(before, None, "`{name}` stands in two rows");
        }
    }
    rows
}

/// The rows of the table below the heading `The modules`.
fn table(document: &str) -> Vec<&str> {
    let rows: Vec<_> = document
        .lines()
        .skip_while(|line| *line != "## The modules")
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .collect();
    assert!(!rows.is_empty(), "no table of modules");
    rows
}

/// What the picture of the modules is drawn from.
fn layers(document: &str) -> String {
    let rows = table(document).into_iter().map(|row| {
        let columns: Vec<_> = row.split('|').map(str::trim).collect();
        let mark = match row.contains("no kernel") {
            true => " (no kernel)",
            false => "",
        };
        format!("{}: {}{mark}\n", columns[2], columns[1])
    });
    rows.collect()
}

/// Whether a picture says that it was drawn from this source.
fn is_drawn_from(picture: &str, source: &str) -> bool {
    let source = source.trim_end_matches('\n');
    picture.contains(&format!("<metadata><![CDATA[\n{source}\n]]></metadata>\n"))
}

/// The modules that the crate root declares, other than those of tests.
fn declared(root: &str) -> BTreeSet<String> {
    let mut declared = BTreeSet::new();
    let mut before = "";
    for line in root.lines() {
        let name = line
            .strip_prefix("pub ")
            .unwrap_or(line)
            .strip_prefix("mod ")
            .and_then(|line| line.strip_suffix(';'));
        if let Some(name) = name
            && !before.starts_with("#[cfg(test)]")
        {
            declared.insert(name.to_owned());
        }
        before = line;
    }
    declared
}

/// All sources by their paths, without the crate root and the modules of tests that it declares.
fn sources() -> Vec<(String, String)> {
    let declared = declared(&read("src/lib.rs"));
    let mut sources = Vec::new();
    let mut directories = vec!["src".to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = Path::new(env!("CARGO_MANIFEST_DIR")).join(&directory);
        for entry in fs::read_dir(entries).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = format!("{directory}/{name}");
            if path.ends_with(".rs") && declared.contains(&module_of(&path)[0]) {
                let text = read(&path);
                sources.push((path, text));
            } else if !name.contains('.') {
                directories.push(path);
            }
        }
    }
    assert!(sources.len() > declared.len());
    sources.sort();
    sources
}

/// `src/a/b.rs` is `a::b`, `src/a/mod.rs` is `a`.
fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').map(str::to_owned).collect()
}

/// Every path in the code that begins with `crate::` or `super::`: its line, and its target from
/// the crate root. Comments do not count.
fn paths(module: &[String], text: &str) -> Vec<(usize, Vec<String>)> {
    let mut paths = Vec::new();
    let mut module = module.to_vec();
    // Where modules inside the file end.
    let mut ends: Vec<String> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        if ends.last().is_some_and(|end| line == end) {
            ends.pop();
            module.pop();
        }
        let declared = code.strip_prefix("pub(crate) ").unwrap_or(code);
        let declared = declared.strip_prefix("pub ").unwrap_or(declared);
        if let Some(name) = declared
            .strip_prefix("mod ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            let indent = &line[..line.len() - code.len()];
            ends.push(format!("{indent}}}"));
            module.push(name.to_owned());
        }
        let mut rest = code;
        while let Some(at) = ["crate::", "super::"]
            .iter()
            .filter_map(|word| rest.find(word))
            .min()
        {
            let is_whole =
                !rest[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
            let mut target = module.clone();
            rest = &rest[at..];
            let is_crate = rest.starts_with("crate::");
            if let Some(after) = rest.strip_prefix("crate::") {
                target.clear();
                rest = after;
            }
            while let Some(after) = rest.strip_prefix("super::") {
                target.pop();
                rest = after;
            }
            // So that it is not a module's name.
            if target.is_empty() && !is_crate {
                target.push("super".to_owned());
            }
            loop {
                let end = rest
                    .find(|of: char| !of.is_alphanumeric() && of != '_')
                    .unwrap_or(rest.len());
                target.push(rest[..end].to_owned());
                rest = &rest[end..];
                match rest.strip_prefix("::") {
                    Some(after) => rest = after,
                    None => break,
                }
            }
            if is_whole {
                paths.push((number + 1, target));
            }
        }
    }
    paths
}

struct Method {
    name: String,
    is_public: bool,
    /// Public, and on a handle that may be changed.
    is_public_change: bool,
    /// Without white space.
    body: String,
}

/// The methods of a file in rustfmt's layout.
fn methods(path: &str, text: &str) -> Vec<Method> {
    let mut methods = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let bare = line.trim_start_matches("    ");
        let bare = bare.strip_prefix("pub(super) ").unwrap_or(bare);
        let is_public = bare.starts_with("pub ");
        let bare = bare.strip_prefix("pub ").unwrap_or(bare);
        let bare = bare.strip_prefix("const ").unwrap_or(bare);
        if !line.starts_with("    ") || line.starts_with("     ") || !bare.starts_with("fn ") {
            continue;
        }
        let name = bare[3..].split(['(', '<']).next().unwrap_or_default();
        let mut body = line.to_owned();
        if !line.ends_with('}') {
            body.extend(lines.by_ref().take_while(|line| *line != "    }"));
        }
        body.retain(|letter| !letter.is_whitespace());
        assert!(!name.is_empty(), "{path}: {line}");
        methods.push(Method {
            name: name.to_owned(),
            is_public,
            is_public_change: is_public && body.contains("(&mutself"),
            body,
        });
    }
    methods
}

/// A block of a type's own methods.
struct Block {
    of: String,
    has_heading: bool,
    /// The names of its public methods.
    public: Vec<String>,
}

/// The blocks of a file in rustfmt's layout.
fn blocks(path: &str, text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut has_heading = false;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("impl") else {
            has_heading |= line.starts_with("/// # ");
            has_heading &= line.starts_with("///") || line.starts_with("#[");
            continue;
        };
        let has_heading = mem::take(&mut has_heading);
        if line.contains(" for ") || !line.ends_with('{') {
            continue;
        }
        // Its parameters may have parameters, too, but then no space follows inside.
        let of = match rest.starts_with('<') {
            true => rest.split_once("> ").map_or("", |(_, of)| of),
            false => rest.trim_start(),
        };
        let of = of.split(|c: char| !c.is_alphanumeric() && c != '_').next();
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "}").collect();
        let methods = methods(path, &body.join("\n")).into_iter();
        blocks.push(Block {
            of: of.unwrap_or_default().to_owned(),
            has_heading,
            public: methods
                .filter(|of| of.is_public)
                .map(|of| of.name)
                .collect(),
        });
    }
    blocks
}

/// The imports in a file that its module must not have.
fn offences(rows: &Rows, path: &str, text: &str) -> Vec<String> {
    let module = module_of(path);
    let own = rows.get(&module[0]);
    let found = paths(&module, text)
        .into_iter()
        .filter_map(|(line, target)| {
            let what = match rows.get(&target[0]) {
                _ if target[0] == module[0] => return None,
                None => "through the crate root, or from a module that the list does not have",
                Some(row) if own.is_some_and(|own| row < own) => return None,
                Some(_) => "from a module that is not above this one in the list",
            };
            Some(format!(
                "{path}:{line}: `{}`: imported {what}",
                target.join("::")
            ))
        });
    found.collect()
}

/// Names that a module's own file takes from its parts, with the part that has them.
fn exports(text: &str) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for line in text.lines() {
        let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
        let line = line.strip_prefix("pub ").unwrap_or(line);
        let name = line
            .strip_prefix("use ")
            .and_then(|rest| rest.strip_suffix(';'));
        if let Some((part, name)) = name.and_then(|path| path.split_once("::")) {
            exports.insert(name.to_owned(), part.to_owned());
        }
    }
    exports
}

/// A series of places of which each leads to the next, and the last to the first.
fn circle<T: Ord + Clone>(edges: &BTreeMap<T, BTreeSet<T>>) -> Option<Vec<T>> {
    let mut left = edges.clone();
    // A place that leads nowhere is on no circle.
    loop {
        let before = left.len();
        let there: BTreeSet<T> = left.keys().cloned().collect();
        left.retain(|_, to| to.iter().any(|to| there.contains(to)));
        if left.len() == before {
            break;
        }
    }
    // All that are left lead on, so the way returns to where it was.
    let mut way: Vec<T> = Vec::new();
    let mut at = left.keys().next()?.clone();
    loop {
        if let Some(from) = way.iter().position(|been| *been == at) {
            return Some(way.split_off(from));
        }
        let next = left[&at].iter().find(|to| left.contains_key(to))?.clone();
        way.push(at);
        at = next;
    }
}
