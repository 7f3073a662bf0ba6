"""All that is to be learnt on a machine with a GPU for half an hour, in one command: the verb `gpu`.

Imports `speed`, `training`, `profiling`, `machine`, `report`. Public: `schedule`, `runner`; a file a step beside them.
"""
