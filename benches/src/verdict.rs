//! Figures beside their targets, in one table at the end of a run.

use std::process::ExitCode;

/// What a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Target {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Target::AtMost(bound) => figure <= bound,
            Target::AtLeast(bound) => figure >= bound,
        }
    }
}

/// Figures measured in this run.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<[String; 4]>,
    missed: usize,
}

impl Table {
    /// Adds a figure, in `unit`.
    pub fn add(&mut self, what: impl Into<String>, figure: f64, unit: &str, target: Target) {
        let (word, bound) = match target {
            Target::AtMost(bound) => ("at most", bound),
            Target::AtLeast(bound) => ("at least", bound),
        };
        // A figure that is no number misses its target.
        let met = target.is_met(figure);
        self.missed += usize::from(!met);
        let verdict = if met { "met" } else { "MISSED" };
        let row = [what.into(), number(figure, unit), format!("{word} {}", number(bound, unit)), verdict.to_owned()];
        println!("{}: {}; target {}: {}", row[0], row[1], row[2], row[3]);
        self.rows.push(row);
    }

    /// Prints all figures, and gives a code that fails when a target was missed or nothing was measured.
    pub fn finish(&self) -> ExitCode {
        let widths: Vec<_> =
            (0..4).map(|column| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
        println!();
        for row in &self.rows {
            let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            println!("{}", cells.join("  ").trim_end());
        }
        println!("{} figures, {} missed", self.rows.len(), self.missed);
        if self.missed > 0 || self.rows.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

fn number(figure: f64, unit: &str) -> String {
    let digits = if figure.abs() >= 100.0 { 0 } else { 3 };
    format!("{figure:.digits$} {unit}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_fails() {
        let mut table = Table::default();
        assert_eq!(table.finish(), ExitCode::FAILURE, "nothing was measured");
        table.add("low", 1.0, "s", Target::AtMost(1.0));
        table.add("high", 1.0, "s", Target::AtLeast(1.0));
        assert_eq!(table.finish(), ExitCode::SUCCESS);
        table.add("no number", f64::NAN, "s", Target::AtMost(1.0));
        assert_eq!(table.finish(), ExitCode::FAILURE);
        assert_eq!(table.rows[2][3], "MISSED");
        assert!(!Target::AtLeast(2.0).is_met(1.9) && !Target::AtMost(2.0).is_met(2.1));
    }
}
