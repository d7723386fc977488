/* A GNU make function: $(become COMMAND,NAMES) replaces make by a shell that runs COMMAND, with the make variables
 * NAMES in its environment. So `make exec` ends with the program's exit status, where make itself knows only 0 and 2. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef char *(*gmk_func_ptr)(const char *name, unsigned argc, char **argv);
extern char *gmk_expand(const char *text);
extern void gmk_free(char *text);
extern void gmk_add_function(const char *name, gmk_func_ptr, unsigned min, unsigned max, unsigned flags);

int plugin_is_GPL_compatible; /* MIT OR Apache-2.0 */

static char *become(const char *name, unsigned argc, char **argv)
{
    (void)name;
    (void)argc;
    for (char *word = strtok(argv[1], " "); word; word = strtok(NULL, " ")) {
        char reference[64];
        snprintf(reference, sizeof reference, "$(%s)", word);
        char *value = gmk_expand(reference);
        if (value) {
            setenv(word, value, 1);
            gmk_free(value);
        }
    }
    unsetenv("MAKEFLAGS");
    unsetenv("MFLAGS");
    unsetenv("MAKELEVEL");
    fflush(NULL);
    execl("/bin/sh", "sh", "-c", argv[0], (char *)NULL);
    return NULL;
}

int become_gmk_setup(void)
{
    gmk_add_function("become", become, 2, 2, 0);
    return 1;
}
