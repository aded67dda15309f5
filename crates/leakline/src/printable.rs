//! From a text of the target's choice to one that may be printed: paths and names may come from whoever sends a request.

/// What would steer a terminal, begin another line or turn the direction of what follows is spelled out.
pub fn printable(text: &str) -> String {
    let steers = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut safe, letter| {
        if steers(letter) {
            safe.extend(letter.escape_default())
        } else {
            safe.push(letter)
        }
        safe
    })
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn a_route_cannot_send_commands_to_the_terminal() {
        assert_eq!(printable("GET /\x1b[2J\r\u{202e}é"), r"GET /\u{1b}[2J\r\u{202e}é");
    }
}
