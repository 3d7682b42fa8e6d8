/*
 * Stands in for bhyve's header of this name: the configuration as a tree of
 * nodes with values.
 */
#ifndef STAND_IN_CONFIG_H
#define STAND_IN_CONFIG_H

typedef struct nvlist nvlist_t;

const char *get_config_value_node(const nvlist_t *parent, const char *name);
const char *get_config_value(const char *path);
nvlist_t *find_config_node(const char *path);

#endif
