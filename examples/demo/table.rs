//! Tables for a terminal of 80 columns: a rule under the header, columns as wide as needed, numbers
//! aligned to the right.

use std::fmt;

/// Space between columns, and before the first.
const GAP: &str = "  ";

/// A table. The first column is aligned to the left, the others to the right unless [`Table::text`]
/// changes that.
pub(crate) struct Table {
    /// The first row is the header.
    rows: Vec<Vec<String>>,
    text: Vec<usize>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|&name| name.to_owned()).collect()],
            text: vec![0],
        }
    }

    /// Aligns a column to the left.
    pub(crate) fn text(mut self, column: usize) -> Self {
        self.text.push(column);
        self
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(move |row| row.get(column)))
            .map(|cells| cells.map(|cell| cell.chars().count()).max().unwrap_or(0))
            .collect();
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                line += GAP;
                line += &match self.text.contains(&column) {
                    true => format!("{cell:<width$}"),
                    false => format!("{cell:>width$}"),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
            if number == 0 {
                let rules: Vec<_> = widths.iter().map(|&width| "-".repeat(width)).collect();
                writeln!(f, "{GAP}{}", rules.join(GAP))?;
            }
        }
        Ok(())
    }
}

/// A number with a comma after every three digits.
pub(crate) fn grouped(number: u64) -> String {
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
