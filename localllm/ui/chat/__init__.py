"""The chat at a terminal.

`loop` reads and answers; `state` is what it knows; `prompt`, `keys`, `completion` and `bar` are the line that is typed;
`answer` and `thinking` show what comes back; `table` finds the /commands, which stand by topics in `turns`, `setting`,
`keeping` and `facts`.
"""
