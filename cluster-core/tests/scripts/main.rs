//! Golden scripts: one protocol case a file, told in commands and what they
//! answer. A script is text: `#` opens a comment, `> ` a command, and the lines
//! below a command are its output. `UPDATE=1` writes the outputs anew, for a
//! reader to compare.
#![allow(clippy::unwrap_used)]

#[path = "../shared/cluster.rs"]
mod cluster;
mod control;
mod leases;
mod words;

use std::fmt::Write as _;
use std::path::Path;
use words::Words;

/// Everything that a script can speak to.
#[derive(Default)]
struct World {
    leases: leases::Leases,
    control: control::Control,
}

impl World {
    fn run(&mut self, command: &str) -> String {
        let words = Words::of(command);
        let answer = self.leases.run(&words).or_else(|| self.control.run(&words));
        let answer = answer.unwrap_or_else(|| panic!("no such command: {command}"));
        words.check_all_used();
        answer
    }
}

/// The script with the outputs that its commands give now.
fn rerun(script: &str) -> String {
    let mut world = World::default();
    let mut told = String::new();
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            let output = world.run(command);
            writeln!(told, "{line}\n{output}").unwrap();
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(told, "{line}").unwrap();
        }
    }
    told
}

#[test]
fn every_script_answers_as_written() {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/cases"));
    let updates = std::env::var_os("UPDATE").is_some();
    let mut cases = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let script = std::fs::read_to_string(&path).unwrap();
        let told = rerun(&script);
        cases += 1;
        if told != script && updates {
            std::fs::write(&path, &told).unwrap();
        } else if told != script {
            wrong.push(format!(
                "{}:\n{}",
                path.display(),
                first_difference(&script, &told)
            ));
        }
    }
    assert!(cases >= 12, "{cases} scripts found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn first_difference(script: &str, told: &str) -> String {
    let (mut want, mut is) = (script.lines(), told.lines());
    for number in 1.. {
        match (want.next(), is.next()) {
            (None, None) => break,
            (want, is) if want == is => {}
            (want, is) => return format!("  line {number}: {want:?} is now {is:?}"),
        }
    }
    "  line ends differ".to_owned()
}

#[test]
fn a_script_whose_output_is_another_is_found() {
    let script = "# A token.\n> token offer=3\nwrite\n";
    assert_eq!(
        rerun(script),
        "# A token.\n> token offer=3\nnew: write, then install\n"
    );
}
