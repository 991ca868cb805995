//! Aligned tables for people: two spaces between columns, numbers to the right,
//! long text cut so that a row stays within a terminal.

/// What a terminal is taken to hold.
const WIDTH_MAX: usize = 100;
const GAP: &str = "  ";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<_> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.columns.len(), "one cell per column");
        self.rows.push(cells);
    }

    /// The table with its heading, or `otherwise` when it has no row.
    pub fn render(&self, otherwise: &str) -> String {
        if self.rows.is_empty() {
            return format!("{otherwise}\n");
        }
        let widths = self.widths();
        let headings: Vec<String> = self
            .columns
            .iter()
            .map(|(name, _)| name.to_uppercase())
            .collect();
        let mut text = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(&self.columns) {
                let cell = cut(cell, *width);
                match align {
                    Align::Left => line.push_str(&format!("{cell:<width$}{GAP}")),
                    Align::Right => line.push_str(&format!("{cell:>width$}{GAP}")),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// As wide as the contents; where a row would not fit, the widest left-aligned
    /// column gives way, again and again.
    fn widths(&self) -> Vec<usize> {
        let wanted = |i: usize| {
            let cells = self.rows.iter().map(|row| row[i].chars().count());
            cells
                .chain([self.columns[i].0.chars().count()])
                .max()
                .unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(wanted).collect();
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > WIDTH_MAX {
            let shrinkable = (0..widths.len()).filter(|&i| {
                self.columns[i].1 == Align::Left
                    && widths[i] > self.columns[i].0.chars().count().max(8)
            });
            match shrinkable.max_by_key(|&i| widths[i]) {
                Some(widest) => widths[widest] -= 1,
                None => break,
            }
        }
        widths
    }
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept.push('…');
    kept
}

/// `1234567` as `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the unit that leaves up to three digits before the point.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if number < 1_000 {
        return format!("{number} B");
    }
    let mut value = number as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 999.5 {
            break;
        }
        value /= 1_000.0;
        unit = next;
    }
    if value < 9.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// How long ago, from milliseconds.
pub fn ago(millis: Option<u64>) -> String {
    match millis {
        None => "never".to_owned(),
        Some(ms) if ms < 10_000 => format!("{:.1} s ago", ms as f64 / 1_000.0),
        Some(ms) if ms < 600_000 => format!("{} s ago", ms / 1_000),
        Some(ms) => format!("{} min ago", ms / 60_000),
    }
}

/// How long, from milliseconds.
pub fn span(millis: u64) -> String {
    match millis {
        ms if ms < 120_000 => format!("{} s", ms.div_ceil(1_000)),
        ms if ms < 7_200_000 => format!("{} min", ms / 60_000),
        ms => format!("{} h", ms / 3_600_000),
    }
}

pub fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_numbers_stand_to_the_right() {
        let mut table = Table::new(&[
            ("node", Align::Left),
            ("rows", Align::Right),
            ("zone", Align::Left),
        ]);
        table.row(["1", "60,000", "a"].map(str::to_owned));
        table.row(["12", "7", "-"].map(str::to_owned));
        assert_eq!(
            table.render("none"),
            "NODE    ROWS  ZONE\n1     60,000  a\n12         7  -\n"
        );
    }

    #[test]
    fn a_table_without_rows_says_so() {
        assert_eq!(
            Table::new(&[("node", Align::Left)]).render("no nodes have joined"),
            "no nodes have joined\n"
        );
    }

    #[test]
    fn a_row_stays_within_a_hundred_columns() {
        let mut table = Table::new(&[
            ("id", Align::Right),
            ("table", Align::Left),
            ("reason", Align::Left),
        ]);
        table.row(["1".to_owned(), "public.items".to_owned(), "ä".repeat(300)]);
        let text = table.render("");
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
        assert!(
            text.contains("public.items") && text.contains('…'),
            "{text}"
        );
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [0, 999, 1_000, 9_960, 188_160_000, 999_600_000].map(bytes),
            ["0 B", "999 B", "1.0 kB", "10 kB", "188 MB", "1.0 GB"]
        );
        assert_eq!(bytes(u64::MAX), "18447 PB");
        assert_eq!(
            [None, Some(1_234), Some(61_000), Some(720_000)].map(ago),
            ["never", "1.2 s ago", "61 s ago", "12 min ago"]
        );
        assert_eq!(
            [0, 1, 12_000, 119_001, 120_000, 9_000_000].map(span),
            ["0 s", "1 s", "12 s", "120 s", "2 min", "2 h"]
        );
    }
}
