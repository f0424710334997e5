//! Purpose: how two texts differ, line by line.
//! Source: longest common subsequence by table; policy files are small.

/// Lines with ` `, `-` or `+` in front; empty when the texts are the same.
pub(crate) fn differ(before: &str, after: &str) -> Vec<String> {
    if before == after {
        return Vec::new();
    }
    let old: Vec<&str> = before.lines().collect();
    let new: Vec<&str> = after.lines().collect();
    let width = new.len() + 1;
    let mut common = vec![0_usize; (old.len() + 1) * width];
    let at = |row: usize, column: usize| row * width + column;
    for row in (0..old.len()).rev() {
        for column in (0..new.len()).rev() {
            common[at(row, column)] = if old[row] == new[column] {
                common[at(row + 1, column + 1)] + 1
            } else {
                common[at(row + 1, column)].max(common[at(row, column + 1)])
            };
        }
    }
    let (mut row, mut column) = (0, 0);
    let mut lines = Vec::new();
    while row < old.len() || column < new.len() {
        if row < old.len() && column < new.len() && old[row] == new[column] {
            lines.push(format!(" {}", old[row]));
            row += 1;
            column += 1;
        } else if column >= new.len() || (row < old.len() && common[at(row + 1, column)] >= common[at(row, column + 1)])
        {
            lines.push(format!("-{}", old[row]));
            row += 1;
        } else {
            lines.push(format!("+{}", new[column]));
            column += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::differ;

    #[test]
    fn shows_what_left_and_what_came() {
        assert_eq!(differ("a\nb\nc", "a\nx\nc"), [" a", "-b", "+x", " c"]);
        assert_eq!(differ("", "a"), ["+a"]);
        assert_eq!(differ("a", ""), ["-a"]);
        assert!(differ("a", "a").is_empty());
    }
}
