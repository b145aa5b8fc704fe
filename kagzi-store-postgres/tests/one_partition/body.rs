//! The SQL statements in the body of a PL/pgSQL function.

/// What begins a statement.
const BEGINNINGS: [&str; 6] = ["SELECT", "PERFORM", "INSERT", "UPDATE", "DELETE", "WITH"];

/// The statements of a body, as plain SQL. What is no statement may not mention a table: then this test does not see all.
pub fn statements(body: &str, tables: &[&str]) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for piece in pieces(&tokens(body)) {
        let (before, statement) = match beginning(piece) {
            Some(at) => piece.split_at(at),
            None => (piece, [].as_slice()),
        };
        if let Some(table) = before.iter().find(|token| tables.contains(&token.as_str())) {
            return Err(format!("{table} is named where no statement begins: {}", piece.join(" ")));
        }
        if !statement.is_empty() {
            all.push(plain(statement));
        }
    }
    Ok(all)
}

/// Words, quoted texts and single signs, without comments.
fn tokens(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = if rest.starts_with("--") {
            let line = rest.find('\n').unwrap_or(rest.len());
            rest = rest[line..].trim_start();
            continue;
        } else if first == '\'' {
            rest[1..].find('\'').map_or(rest.len(), |end| end + 2)
        } else if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else {
            ["::", ":=", "<=", ">=", "<>", "||"]
                .iter()
                .find(|sign| rest.starts_with(**sign))
                .map_or(first.len_utf8(), |sign| sign.len())
        };
        all.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    all
}

/// Cuts at semicolons, and where a loop over rows begins its body.
fn pieces(tokens: &[String]) -> Vec<&[String]> {
    let mut depth = 0_i32;
    tokens
        .split(|token| {
            depth += i32::from(token == "(") - i32::from(token == ")");
            depth == 0 && (token == ";" || token == "LOOP")
        })
        .filter(|piece| !piece.is_empty())
        .collect()
}

/// Where the statement of a piece begins, behind `BEGIN`, `IF ... THEN`, `RETURN QUERY` and the like.
fn beginning(piece: &[String]) -> Option<usize> {
    let mut depth = 0_i32;
    piece.iter().position(|token| {
        depth += i32::from(token == "(") - i32::from(token == ")");
        depth == 0 && BEGINNINGS.contains(&token.as_str())
    })
}

/// `PERFORM` as `SELECT`, and without the variables that take what was selected.
fn plain(statement: &[String]) -> String {
    let mut words: Vec<&str> = Vec::new();
    let (mut depth, mut at) = (0_i32, 0);
    while let Some(token) = statement.get(at) {
        depth += i32::from(token == "(") - i32::from(token == ")");
        match token.as_str() {
            "PERFORM" if statement.get(at + 1).is_some_and(|next| next == "FROM") => {
                words.extend(["SELECT", "1"]);
            }
            "PERFORM" => words.push("SELECT"),
            "INTO" if depth == 0 && words.last() != Some(&"INSERT") => {
                // A name, and further ones behind commas.
                at += 1;
                while statement.get(at + 1).is_some_and(|next| next == ",") {
                    at += 2;
                }
            }
            // A name of ours that the parser keeps for itself.
            "open" => words.push("opened"),
            other => words.push(other),
        }
        at += 1;
    }
    words.join(" ")
}
