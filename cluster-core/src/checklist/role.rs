//! What the role must be allowed, right by right. A superuser has them all; one
//! that follows should not be one.

use super::{Check, RoleFacts};

/// Of the tables that miss a right, how many are named.
const NAMED_MAX: usize = 3;

pub fn checks(role: &RoleFacts, has_extension: bool) -> Vec<Check> {
    let mut checks = vec![superuser(role), replication(role), statistics(role)];
    // Without the extension there is nothing to have rights on.
    if has_extension {
        checks.extend([definitions(role), publication(role)]);
        // Which tables there are is among what it cannot read otherwise.
        if role.reads_definitions {
            checks.extend([tables(role), row_security(role)]);
        }
    }
    checks
}

fn superuser(role: &RoleFacts) -> Check {
    let name = &role.name;
    match role.is_superuser {
        false => Check::ok("role", format!("{name} is no superuser")),
        true => Check::warning(
            "role",
            format!("{name} is a superuser"),
            "docs/sources.md has the SQL of a role with just the rights that are needed",
        ),
    }
}

fn replication(role: &RoleFacts) -> Check {
    let name = &role.name;
    match role.can_replicate || role.is_superuser {
        true => Check::ok("replication", format!("{name} may replicate")),
        false => Check::failed(
            "replication",
            format!("{name} may not replicate"),
            format!("ALTER ROLE {name} REPLICATION"),
        ),
    }
}

fn statistics(role: &RoleFacts) -> Check {
    let name = &role.name;
    match role.reads_all_stats {
        true => Check::ok("snapshots", format!("{name} sees how old snapshots are")),
        false => Check::warning(
            "snapshots",
            format!(
                "{name} does not see how old other roles' snapshots are: former row versions are kept for ever"
            ),
            format!("GRANT pg_read_all_stats TO {name}"),
        ),
    }
}

fn definitions(role: &RoleFacts) -> Check {
    let name = &role.name;
    match role.reads_definitions {
        true => Check::ok(
            "definitions",
            format!("{name} reads which indexes there are"),
        ),
        false => Check::failed(
            "definitions",
            format!("{name} cannot read the tables of schema ruvector"),
            format!(
                "GRANT USAGE ON SCHEMA ruvector TO {name}; \
                 GRANT SELECT ON ruvector.collections, ruvector.detachments, ruvector.slot_advances TO {name}"
            ),
        ),
    }
}

fn publication(role: &RoleFacts) -> Check {
    let name = &role.name;
    if role.has_no_functions && role.is_superuser {
        return Check::ok("publication", format!("{name} is a superuser"));
    }
    if role.has_no_functions {
        return Check::failed(
            "publication",
            "the extension is of 0.1.0, which only a superuser can follow",
            "ALTER EXTENSION ruvector UPDATE",
        );
    }
    match role.missing_functions.as_slice() {
        [] => Check::ok(
            "publication",
            format!("{name} may publish tables with an index"),
        ),
        missing => Check::failed(
            "publication",
            format!("{name} may not call {}", missing.join(", ")),
            format!("GRANT EXECUTE ON FUNCTION {} TO {name}", missing.join(", ")),
        ),
    }
}

fn tables(role: &RoleFacts) -> Check {
    let name = &role.name;
    match role.unreadable_tables.as_slice() {
        [] => Check::ok("tables", format!("{name} reads every table with an index")),
        tables => Check::failed(
            "tables",
            format!("{name} cannot read {}", named(tables)),
            format!("GRANT SELECT ON {} TO {name}", named(tables)),
        ),
    }
}

fn row_security(role: &RoleFacts) -> Check {
    let name = &role.name;
    match role.shielded_tables.as_slice() {
        [] => Check::ok("row security", format!("no policy hides rows from {name}")),
        tables => Check::failed(
            "row security",
            format!(
                "row-level security keeps {name} from copying {}",
                named(tables)
            ),
            format!("ALTER ROLE {name} BYPASSRLS"),
        ),
    }
}

fn named(tables: &[String]) -> String {
    let more = tables.len().saturating_sub(NAMED_MAX);
    let first = tables[..tables.len() - more].join(", ");
    match more {
        0 => first,
        _ => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn allowed() -> RoleFacts {
        RoleFacts {
            name: "follower".into(),
            can_replicate: true,
            reads_all_stats: true,
            reads_definitions: true,
            ..RoleFacts::default()
        }
    }

    #[test]
    fn a_role_with_just_the_rights_that_are_needed_passes() {
        let checks = checks(&allowed(), true);
        assert!(
            checks.iter().all(|c| c.verdict == Verdict::Ok),
            "{checks:?}"
        );
    }

    #[test]
    fn each_missing_right_fails_by_its_name_with_the_grant() {
        type Spoil = fn(&mut RoleFacts);
        let spoil: [(&str, Spoil, &str); 5] = [
            ("replication", |r| r.can_replicate = false, "REPLICATION"),
            (
                "definitions",
                |r| r.reads_definitions = false,
                "GRANT USAGE",
            ),
            (
                "publication",
                |r| r.missing_functions = vec!["ruvector.publish_table(name, oid)".into()],
                "GRANT EXECUTE ON FUNCTION ruvector.publish_table(name, oid) TO follower",
            ),
            (
                "tables",
                |r| r.unreadable_tables = (1..6).map(|n| format!("public.t{n}")).collect(),
                "public.t3 and 2 more",
            ),
            (
                "row security",
                |r| r.shielded_tables = vec!["public.t".into()],
                "BYPASSRLS",
            ),
        ];
        for (name, spoil, remedy) in spoil {
            let mut role = allowed();
            spoil(&mut role);
            let checks = checks(&role, true);
            let failed: Vec<_> = checks.iter().filter(|c| c.is_failed()).collect();
            let [failed] = failed.as_slice() else {
                panic!("{name}: {failed:?}");
            };
            assert_eq!(failed.name, name);
            assert!(failed.remedy.contains(remedy), "{failed:?}");
        }
    }

    #[test]
    fn an_extension_without_the_functions_needs_a_superuser() {
        let mut role = allowed();
        role.has_no_functions = true;
        assert!(publication(&role).is_failed());
        role.is_superuser = true;
        assert!(!publication(&role).is_failed());
    }
}
