"""The command line: one parser, and a file a verb, which is imported only when it is called.

May import everything below. Public: `parser.run_command`.
"""
