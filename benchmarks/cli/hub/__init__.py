"""The verbs that take a trained model elsewhere: `export` writes a folder for a model hub, `push` uploads one."""
